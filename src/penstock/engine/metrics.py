"""What a server measures, for Prometheus: our own names, and vLLM's as aliases for dashboards that exist.

Fed by AsyncEngine. Labels come from closed sets alone, so that no client can make the output grow.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

TIMES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GAPS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
LENGTHS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
COUNTS: Final = (1, 2, 4, 8, 16)

OUTCOMES: Final = ("stop", "length", "abort", "error", "deadline", "slow_reader", "poisoned", "restart")
REFUSALS: Final = ("queue", "memory", "draining", "engine_down")

ALIASES: Final = {  # ours -> vLLM's
    "penstock_requests_running": "vllm:num_requests_running",
    "penstock_requests_waiting": "vllm:num_requests_waiting",
    "penstock_kv_usage_ratio": "vllm:kv_cache_usage_perc",
    "penstock_cache_queried_tokens": "vllm:prefix_cache_queries",
    "penstock_cached_tokens": "vllm:prefix_cache_hits",
    "penstock_preemptions": "vllm:num_preemptions",
    "penstock_prompt_tokens": "vllm:prompt_tokens",
    "penstock_output_tokens": "vllm:generation_tokens",
    "penstock_step_tokens": "vllm:iteration_tokens_total",
    "penstock_requests": "vllm:request_success",
    "penstock_prompt_length_tokens": "vllm:request_prompt_tokens",
    "penstock_output_length_tokens": "vllm:request_generation_tokens",
    "penstock_request_n": "vllm:request_params_n",
    "penstock_request_max_tokens": "vllm:request_params_max_tokens",
    "penstock_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "penstock_inter_token_seconds": "vllm:inter_token_latency_seconds",
    "penstock_request_seconds": "vllm:e2e_request_latency_seconds",
    "penstock_queue_seconds": "vllm:request_queue_time_seconds",
    "penstock_inference_seconds": "vllm:request_inference_time_seconds",
    "penstock_prefill_seconds": "vllm:request_prefill_time_seconds",
    "penstock_decode_seconds": "vllm:request_decode_time_seconds",
    "penstock_cache_config_info": "vllm:cache_config_info",
}


class Metrics:
    """One per server, with a registry of its own. `model` is a label of the aliases, as vLLM has it."""

    def __init__(self, model: str) -> None:
        self._own = CollectorRegistry(auto_describe=False)
        self._all = CollectorRegistry(auto_describe=False)
        self._all.register(_WithAliases(self._own, model))
        self.running = self._gauge("requests_running", "Calls that the engine has.")
        self.waiting = self._gauge("requests_waiting", "Calls in the queue.")
        self.waiting_bytes = self._gauge("requests_waiting_bytes", "Bytes of the calls in the queue.")
        self.kv_usage = self._gauge("kv_usage_ratio", "Share of the KV blocks in use, 0 to 1.")
        self.engine_up = self._gauge("engine_up", "1 while the engine process is ready.")
        self.heartbeat_age = self._gauge("engine_heartbeat_age_seconds", "Since its last heartbeat.")
        self.engine_rss = self._gauge("engine_resident_bytes", "Memory of the engine process.")
        self.front_rss = self._gauge("front_end_resident_bytes", "Memory of the front-end process.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of calls that began.")
        self.output_tokens = self._counter("output_tokens", "Tokens generated.")
        self.cached_tokens = self._counter("cached_tokens", "Prompt tokens found in the prefix cache.")
        self.queried_tokens = self._counter("cache_queried_tokens", "Prompt tokens looked up there.")
        self.preemptions = self._counter("preemptions", "Times a request lost its blocks.")
        self.restarts = self._counter("engine_restarts", "Times the engine process was started again.")
        self.replays = self._counter("requests_replayed", "Calls that went on after a death of the engine.")
        self.malformed = self._counter("malformed_frames", "Frames between the processes that were dropped.")
        self.dropped_logs = self._counter("log_lines_dropped", "Log lines that could not be written.")
        self.ended = self._counter("requests", "Calls that ended.", "finished_reason", OUTCOMES)
        self.refused = self._counter("requests_refused", "Calls refused at the door.", "reason", REFUSALS)
        self.ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", TIMES)
        self.gap = self._histogram("inter_token_seconds", "Between two tokens of a request.", GAPS)
        self.total = self._histogram("request_seconds", "Arrival to end.", TIMES)
        self.queue = self._histogram("queue_seconds", "Arrival to first step.", TIMES)
        self.inference = self._histogram("inference_seconds", "First step to end.", TIMES)
        self.prefill = self._histogram("prefill_seconds", "First step to first token.", TIMES)
        self.decode = self._histogram("decode_seconds", "First token to last.", TIMES)
        self.step_tokens = self._histogram("step_tokens", "Tokens that one step gave.", LENGTHS)
        self.prompt_length = self._histogram("prompt_length_tokens", "Tokens of a prompt.", LENGTHS)
        self.output_length = self._histogram("output_length_tokens", "Tokens of an answer.", LENGTHS)
        self.n = self._histogram("request_n", "Answers asked for per call.", COUNTS)
        self.max_tokens = self._histogram("request_max_tokens", "Most tokens asked for per call.", LENGTHS)

    def describe_cache(self, *, block_size: int, num_blocks: int, prefix_cache: bool) -> None:
        """Once, when the plan is known."""
        names = ("block_size", "num_gpu_blocks", "enable_prefix_caching")
        info = Gauge("penstock_cache_config_info", "The KV cache.", names, registry=self._own)
        info.labels(str(block_size), str(num_blocks), str(prefix_cache)).set(1)

    def render(self) -> str:
        """Prometheus' text format."""
        return generate_latest(self._all).decode()

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(f"penstock_{name}", help, registry=self._own)

    def _counter(self, name: str, help: str, label: str = "", values: tuple[str, ...] = ()) -> Counter:
        labels = (label,) if label else ()
        counter = Counter(f"penstock_{name}", help, labels, registry=self._own)
        for value in values:
            counter.labels(value)
        return counter

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"penstock_{name}", help, buckets=buckets, registry=self._own)


class _WithAliases(Collector):
    """Every family of a registry, and those with an alias once more: measured once, told twice."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._registry = registry
        self._model = model

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
            alias = ALIASES.get(metric.name)
            if alias is not None:
                told = Metric(alias, f"Alias of {metric.name}.", metric.type)
                told.samples = [
                    Sample(
                        alias + sample.name.removeprefix(metric.name),
                        {"model_name": self._model, **sample.labels},
                        sample.value,
                    )
                    for sample in metric.samples
                ]
                yield told
