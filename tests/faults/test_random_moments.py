"""Five faults at moments that a seed draws."""

import pytest

from tests.faults.random_moments import line, repetitions
from tests.faults.work import Work


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_five_faults_at_random_moments(whole: Work) -> None:
    for outcome in repetitions(whole, seed=0, count=5):
        print(f"\nFAULT {line(outcome)}")
