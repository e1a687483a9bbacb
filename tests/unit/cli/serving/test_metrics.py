"""What a server has done, as Prometheus reads it."""

import re

from hf_accum.cli.serving.metrics import Metrics


def test_each_line_is_one_of_the_text_format_and_histograms_add_up() -> None:
    metrics = Metrics()
    for status, seconds in ((200, 0.005), (200, 0.006), (422, 100.0)):
        metrics.answered(status, seconds)
    metrics.computed(num_requests=2, num_rows=5)
    metrics.told(num_rows=5, num_cut=1)
    lines = metrics.text(num_in_progress=3).splitlines()
    values, types = {}, {}
    for line in lines:
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            types[name] = kind
        elif not line.startswith("# HELP"):
            matched = re.fullmatch(r'([a-z_]+(?:\{[a-z]+="[^"]*"\})?) ([0-9.e+-]+)', line)
            assert matched, line
            values[matched[1].removeprefix("hf_accum_")] = float(matched[2])
    assert sorted(types.values()) == ["counter"] * 4 + ["gauge"] + ["histogram"] * 3
    assert values['requests_total{status="200"}'] == 2
    assert values['requests_total{status="422"}'] == values["errors_total"] == 1
    assert (values["rows_total"], values["cut_rows_total"], values["requests_in_progress"]) == (5, 1, 3)
    assert values['request_seconds_bucket{le="0.005"}'] == 1  # the bound is in it
    assert values['request_seconds_bucket{le="0.01"}'] == values['request_seconds_bucket{le="60.0"}'] == 2
    assert values['request_seconds_bucket{le="+Inf"}'] == values["request_seconds_count"] == 3
    assert values["request_seconds_sum"] == 100.011
    assert values['batch_rows_bucket{le="4"}'] == 0
    assert values['batch_rows_bucket{le="8"}'] == values["batch_rows_count"] == 1
    assert (values["batch_rows_sum"], values["batch_requests_sum"]) == (5, 2)
