"""What a stage took, and what it cost."""

from aqe.config.pipeline import PriceConfig
from aqe.observe.cost import describe, money

STATS = {"rows_in": 500, "cpu_hours": 2.0, "gpu_hours": 0.5}


def test_hours_are_told_per_thousand_rows() -> None:
    assert describe(STATS, PriceConfig()) == "2 CPU hours (4 per 1,000 rows), 0.5 GPU hours (1 per 1,000 rows)"
    assert describe({"cpu_hours": 0.0, "gpu_hours": 0.0}, PriceConfig()) == "no time worth counting"


def test_money_needs_a_price_for_every_kind_of_hour_that_was_taken() -> None:
    assert money(STATS, PriceConfig(cpu=0.05)) is None
    assert money(STATS, PriceConfig(cpu=0.05, gpu=4)) == 2.1
    assert money({"cpu_hours": 2.0, "gpu_hours": 0.0}, PriceConfig(cpu=0.05)) == 0.1
    assert describe(STATS, PriceConfig(cpu=0, gpu=4)).endswith("2.00 at the configured price")
