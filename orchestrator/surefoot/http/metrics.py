"""Figures for Prometheus, in its own text format, by its own library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from surefoot import __version__
from surefoot.figures import Figure

from .doors import Reader, TheEngine

outside = APIRouter(include_in_schema=False)
PREFIX = "surefoot_"


class Found(Collector):
    """What was found in the store this time."""

    def __init__(self, found: Sequence[Figure]) -> None:
        self._found = found

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Each figure in their terms."""
        about = GaugeMetricFamily(f"{PREFIX}info", "Which version answers.", labels=["version"])
        about.add_metric([__version__], 1)
        yield about
        for figure in self._found:
            family = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
            shown = family(PREFIX + figure.name, figure.help, labels=list(figure.labels))
            for labels, value in figure.values.items():
                shown.add_metric(list(labels), value)
            yield shown


@outside.get("/metrics")
async def metrics(engine: TheEngine, _caller: Reader) -> Response:
    """All figures, as they are in the store now."""
    registry = CollectorRegistry()
    registry.register(Found(await engine.facts.figures()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
