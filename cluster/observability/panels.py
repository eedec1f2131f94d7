"""What the dashboard shows: PromQL over the metrics of this project, of vLLM and of Ray."""

from dataclasses import dataclass

from aqe.observe import metrics

WINDOW = "$__rate_interval"
"""Grafana's: at least four scrapes long."""


@dataclass(frozen=True)
class Panel:
    """One graph. `unit` is Grafana's name for it; `series` are pairs of PromQL and the legend of its lines."""

    title: str
    about: str
    unit: str
    series: tuple[tuple[str, str], ...]


def rate(name: str, by: str = "stage", labels: str = "") -> str:
    """A counter's increase a second, summed over processes."""
    return f"sum by ({by}) (rate(ray_{name}{labels}[{WINDOW}]))"


def total(name: str, by: str = "stage") -> str:
    """A gauge, summed over processes."""
    return f"sum by ({by}) (ray_{name})"


def share(part: str, whole: str) -> str:
    """A share of two rates. Nothing where nothing happened."""
    return f"{part} / {whole}"


def quantile(q: float, name: str, by: str = "") -> str:
    """A quantile of a histogram's observations."""
    return f"histogram_quantile({q}, {rate(name + '_bucket', f'le, {by}' if by else 'le')})"


_IDLE = f"1 - avg by (stage) (avg_over_time(ray_{metrics.BUSY}[{WINDOW}]))"
_CACHED = share(
    f"sum(rate(ray_{metrics.PROMPT_TOKENS}{{source='cached'}}[{WINDOW}]))",
    f"sum(rate(ray_{metrics.PROMPT_TOKENS}[{WINDOW}]))",
)
_HITS = share(
    f"sum(rate(ray_vllm_prefix_cache_hits_total[{WINDOW}]))",
    f"sum(rate(ray_vllm_prefix_cache_queries_total[{WINDOW}]))",
)
_REQUESTS = f"sum(rate(ray_{metrics.REQUESTS}[{WINDOW}]))"
_FAILED = f"sum(rate(ray_{metrics.REQUESTS}{{code=~'5..'}}[{WINDOW}]))"

#: row -> panels
ROWS: dict[str, tuple[Panel, ...]] = {
    "Pipeline": (
        Panel(
            "Tokens generated",
            "By sampling, evaluation and serving. Counted when a unit of queries is done.",
            "tokens/s",
            ((rate(metrics.GENERATED_TOKENS), "{{stage}}"),),
        ),
        Panel("Candidates", "Expansions generated.", "cps", ((rate(metrics.CANDIDATES), "{{stage}}"),)),
        Panel("Gold ranks", "Ranks computed.", "ops", ((rate(metrics.RANKS), "{{stage}}"),)),
        Panel("Rows", "Queries that a stage has been through.", "rowsps", ((rate(metrics.ROWS), "{{stage}}"),)),
        Panel(
            "Time left",
            "Of running stages, at their rate so far.",
            "s",
            ((f"max by (stage) (ray_{metrics.ETA})", "{{stage}}"),),
        ),
        Panel(
            "Done",
            "Share of a running stage, by rows or steps.",
            "percentunit",
            ((f"max by (stage) (ray_{metrics.DONE})", "{{stage}}"),),
        ),
        Panel(
            "Units",
            "Waiting or in work, and in work alone: the rest is the queue.",
            "short",
            ((total(metrics.UNITS_LEFT), "{{stage}} left"), (total(metrics.BUSY), "{{stage}} in work")),
        ),
        Panel(
            "Idle workers",
            "Share of the workers' time in which they loaded or waited. A sampling worker on a GPU holds all of it.",
            "percentunit",
            ((_IDLE, "{{stage}}"),),
        ),
        Panel(
            "Prompt tokens not computed",
            "Share of the prompts of all candidates that was computed for another one.",
            "percentunit",
            ((_CACHED, "transformers"), (_HITS, "vLLM")),
        ),
        Panel(
            "Dead letters",
            "Share of rows that could not be processed. A stage fails above max_dead_share.",
            "percentunit",
            ((share(rate(metrics.DEAD_LETTERS), rate(metrics.ROWS)), "{{stage}}"),),
        ),
    ),
    "Training": (
        Panel(
            "Tokens trained on",
            "Prompts and completions, all workers.",
            "tokens/s",
            ((total(metrics.TRAIN_TOKENS), "{{stage}}"),),
        ),
        Panel("Loss", "Nats: rsft a token, dpo a pair.", "short", ((total(metrics.TRAIN_LOSS), "{{stage}}"),)),
        Panel("Reward margin", "DPO, beta times nats.", "short", ((total(metrics.TRAIN_MARGIN), "{{stage}}"),)),
    ),
    "Service": (
        Panel("Requests", "Answered, by status.", "reqps", ((rate(metrics.REQUESTS, "code"), "{{code}}"),)),
        Panel("Failed requests", "Share with status 5xx.", "percentunit", ((share(_FAILED, _REQUESTS), "5xx"),)),
        Panel(
            "Latency",
            "From a request's arrival to the end of its answer.",
            "s",
            (
                (quantile(0.5, metrics.LATENCY, "route"), "p50 {{route}}"),
                (quantile(0.95, metrics.LATENCY, "route"), "p95 {{route}}"),
            ),
        ),
        Panel(
            "First text",
            "From a prompt's arrival at the engine.",
            "s",
            ((quantile(0.5, metrics.FIRST_TOKEN), "p50"), (quantile(0.95, metrics.FIRST_TOKEN), "p95")),
        ),
        Panel(
            "In flight", "In work or waiting, all replicas.", "short", ((f"sum(ray_{metrics.IN_FLIGHT})", "requests"),)
        ),
        Panel("Response cache", "Queries looked up.", "ops", ((rate(metrics.CACHE, "outcome"), "{{outcome}}"),)),
    ),
    "vLLM": (
        Panel(
            "Tokens in and out",
            "Of every engine, as vLLM counts them.",
            "tokens/s",
            (
                (f"sum(rate(ray_vllm_prompt_tokens_total[{WINDOW}]))", "prompts"),
                (f"sum(rate(ray_vllm_generation_tokens_total[{WINDOW}]))", "generated"),
            ),
        ),
        Panel(
            "Sequences",
            "In the running batch, and before it.",
            "short",
            (("sum(ray_vllm_num_requests_running)", "running"), ("sum(ray_vllm_num_requests_waiting)", "waiting")),
        ),
        Panel("Key-value cache", "Share in use.", "percentunit", (("avg(ray_vllm_kv_cache_usage_perc)", "in use"),)),
    ),
    "Nodes": (
        Panel("CPU", "", "percent", (("avg by (NodeAddress) (ray_node_cpu_utilization)", "{{NodeAddress}}"),)),
        Panel(
            "Memory",
            "Ray kills workers at 95 %.",
            "percentunit",
            (
                (
                    "sum by (NodeAddress) (ray_node_mem_used) / sum by (NodeAddress) (ray_node_mem_total)",
                    "{{NodeAddress}}",
                ),
            ),
        ),
        Panel(
            "GPU",
            "",
            "percent",
            (
                (
                    "avg by (NodeAddress, GpuIndex) (ray_node_gpus_utilization)",
                    "{{NodeAddress}} {{GpuIndex}}",
                ),
            ),
        ),
        Panel(
            "Object store",
            "",
            "bytes",
            (("sum by (Location) (ray_object_store_memory)", "{{Location}}"),),
        ),
        Panel(
            "Ray Data",
            "Rows out of each operator: of a stage's units here.",
            "rowsps",
            ((f"sum by (operator) (rate(ray_data_output_rows[{WINDOW}]))", "{{operator}}"),),
        ),
    ),
}
