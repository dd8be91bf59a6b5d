"""The benchmark of ``predict``: all implementations run, and the table has a row for each."""

from benchmarks import predict


def test_on_its_smallest_inputs(capsys):
    times = predict.main(["--quick", "--threads", "1", "--rounds", "1", "--images", "2"])
    assert list(times) == [predict.LOOP, predict.STREAM, predict.NO_DRAW, predict.ALL]
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in times.values())
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:]] == list(times) and "| 1.000 |" in rows[1]
