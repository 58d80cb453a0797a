"""Prometheus metrics under vLLM's names, with our prefix: `qwenkit:num_requests_running` …

Gauges and counters of the engine are read when somebody asks; the histograms are fed as requests
run. Each application has a registry of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwenkit.engine.stats import Stats
from qwenkit.llm import LLM

PREFIX = "qwenkit:"
FIRST = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
BETWEEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class EngineCollector(Collector):
    """The engine's own numbers, at the moment of asking."""

    def __init__(self, llm: LLM, model: str, max_loras: int) -> None:
        self._llm, self._model, self._max_loras = llm, model, max_loras

    def collect(self) -> Iterable[Metric]:
        stats = self._llm.driver.engine.stats()
        gauges = {
            "num_requests_running": ("Requests that are being computed.", stats.running),
            "num_requests_waiting": ("Requests that wait, paused ones too.", stats.waiting),
            "kv_cache_usage_perc": ("Share of the cache in use, 0 to 1.", stats.kv_usage),
        }
        counters = {
            "prompt_tokens": ("Tokens of prompts.", stats.prompt_tokens),
            "generation_tokens": ("Tokens that were generated.", stats.generation_tokens),
            "prefix_cache_queries": ("Tokens looked up in the cache.", stats.prompt_tokens),
            "prefix_cache_hits": ("Tokens found in the cache.", stats.cached_tokens),
            "spec_decode_num_draft_tokens": ("Draft tokens.", stats.draft_tokens),
            "spec_decode_num_accepted_tokens": ("Those that were right.", stats.accepted_tokens),
            "num_preemptions": ("Times that a request was paused.", stats.preemptions),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter
        yield self._adapters(stats)

    def _adapters(self, stats: Stats) -> Metric:
        """As vLLM tells it: the names in labels, the time as the value. An adapter that was
        unloaded has no name any more.
        """
        names = {adapter.id: name for name, adapter in self._llm.adapters.items()}
        labels = {"max_lora": str(self._max_loras)}
        for label, numbers in (
            ("running_lora_adapters", stats.running_adapters),
            ("waiting_lora_adapters", stats.waiting_adapters),
        ):
            labels[label] = ",".join(sorted(names[each] for each in numbers if each in names))
        text = "Adapters of requests that are computed, and of requests that wait."
        gauge = GaugeMetricFamily(PREFIX + "lora_requests_info", text, labels=list(labels))
        gauge.add_metric(list(labels.values()), time.time())
        return gauge


class Metrics:
    """What the server measures itself."""

    def __init__(self, llm: LLM, model: str, max_loras: int) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(llm, model, max_loras))
        self._model = model
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Until the first token.", FIRST
        )
        self.between = self._histogram(
            "inter_token_latency_seconds", "Between two tokens.", BETWEEN
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "Whole requests.", WHOLE)
        self.prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.generation = self._histogram(
            "request_generation_tokens", "Tokens of an answer.", TOKENS
        )
        self._success = Counter(
            PREFIX + "request_success",
            "Requests that were answered.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._http = Counter(
            PREFIX + "http_requests",
            "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        whole = Histogram(
            PREFIX + name, text, ["model_name"], registry=self.registry, buckets=buckets
        )
        one: Histogram = whole.labels(self._model)
        return one

    def finished(self, reason: str) -> None:
        """A request was answered to its end."""
        self._success.labels(self._model, reason).inc()

    def answered(self, route: str, method: str, status: int) -> None:
        """An HTTP request has ended. `route` is the pattern, never what a client typed."""
        self._http.labels(route, method, str(status)).inc()

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
