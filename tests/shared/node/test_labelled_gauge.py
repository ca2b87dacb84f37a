from shared.node.labelled_gauge import LabelledGauge
from shared.telemetry.metrics_registry import Metrics


def test_removed_series_are_no_longer_shown() -> None:
    metrics = Metrics("web")
    series = LabelledGauge(lambda: metrics.gpu_usage)
    series.show({("m", "0"): 0.5, ("m", "1"): 0.25})
    assert 'ai_platform_gpu_usage_ratio{gpu="1",machine="m"} 0.25' in metrics.render()
    series.show({("m", "0"): 0.75})
    text = metrics.render()
    assert 'ai_platform_gpu_usage_ratio{gpu="0",machine="m"} 0.75' in text
    assert 'gpu="1"' not in text
    series.show({})
    assert 'gpu="0"' not in metrics.render()


def test_an_empty_gauge_is_omitted() -> None:
    metrics = Metrics("web")
    LabelledGauge(lambda: metrics.gpu_usage).show({})
    assert "gpu" not in metrics.render()
