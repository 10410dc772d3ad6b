"""Intervals and tests, against closed forms, reference implementations and published examples."""

import csv

import numpy as np
import pytest
from scipy import stats

from jobs import JobError, UsageError, compare
from jobs.evaluation import comparison, metrics, predictions
from jobs.evaluation.intervals import BIASED, cluster_weights, estimate, holding, intervals, percentile, reflected
from jobs.evaluation.tables import ALIKE
from model.calibration import rescale
from model.labels import CLASSES


def answers(seed, strength=1.5, count=300):
    random = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(0, 3, count)
    logits = random.normal(size=(count, 3)) + strength * np.eye(3)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_a_resample_draws_patients_with_all_their_films():
    patients = ["a", "b", "a", "c", "a", "b"]
    weights = cluster_weights(patients, resamples=500, seed=3)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 0] == weights[:, 4]).all()
    assert (weights[:, 1] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()  # as many patients as there are
    np.testing.assert_array_equal(weights, cluster_weights(patients, resamples=500, seed=3))
    assert (weights != cluster_weights(patients, resamples=500, seed=4)).any()


def test_the_interval_of_a_share_is_the_normal_one():
    labels, probabilities = answers(1, count=2000)
    found = intervals(labels, probabilities, [str(index) for index in range(len(labels))])
    accuracy = metrics.score(labels, probabilities)["accuracy"]
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / len(labels))
    np.testing.assert_allclose(found["accuracy"], [accuracy - half, accuracy + half], atol=0.1 * half)


def test_films_of_one_patient_widen_the_interval():
    labels, probabilities = (np.repeat(values, 5, axis=0) for values in answers(1))
    alone = intervals(labels, probabilities, [str(index) for index in range(len(labels))])["accuracy"]
    together = intervals(labels, probabilities, [str(index // 5) for index in range(len(labels))])["accuracy"]
    # Five copies of a film say no more than one: the square root of five as wide.
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(5**0.5, rel=0.1)


def test_against_scipys_bootstrap():
    labels, probabilities = answers(2)
    truth, value = labels != 0, 1 - probabilities[:, 0]

    def area(index):
        return metrics.auroc(truth[index], value[index], np.ones((1, len(index))))[0]

    theirs = stats.bootstrap(
        (np.arange(len(labels)),), area, vectorized=False, n_resamples=2000, method="percentile", rng=5
    ).confidence_interval
    ours = intervals(labels, probabilities, [str(index) for index in range(len(labels))])["binary"]["auroc"]
    np.testing.assert_allclose(ours, [theirs.low, theirs.high], atol=0.004)


def answers_of_known_calibration(seed, count, temperature):
    """Labels drawn from the probabilities, which are then sharpened: what is left of their truth is known."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([0.5, 0.5, 0.5], count)
    labels = (random.random((count, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    return labels, rescale(probabilities, temperature, (0, 0, 0))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("name", "bins"), [("ece", metrics.equal_width), ("ece_equal_mass", metrics.equal_mass)])
def test_the_interval_of_the_calibration_error_holds_the_true_one(name, bins, temperature):
    truth = 0 if temperature == 1 else metrics.score(*answers_of_known_calibration(99, 200_000, temperature))[name]
    held, widths = 0, []
    for seed in range(60):
        labels, probabilities = answers_of_known_calibration(seed, 300, temperature)

        def error(weights, labels=labels, probabilities=probabilities):
            return {name: metrics._calibration_error(labels, probabilities, weights, bins(probabilities))}

        low, high = estimate(error, [str(index) for index in range(300)])[1][name]
        held += low <= truth <= high
        widths.append(high - low)
    assert held >= 59  # reflected resamples alone hold 54 and 55 of the larger errors, percentiles alone no 0
    assert np.mean(widths) < 0.16


def test_no_calibration_error_is_below_0():
    probabilities = np.tile([0.98, 0.01, 0.01], (60, 1))
    labels = (np.arange(60) == 7).astype(int)
    found = intervals(labels, probabilities, [str(film) for film in range(60)])
    assert [found[name][0] for name in BIASED] == [0, 0] and found["ece"][1] > 0.015


def test_what_is_never_defined_has_no_interval():
    assert percentile(np.array([np.nan, np.nan])) is None
    assert percentile(np.array([np.nan, *[1.0] * 39])) == [1.0, 1.0]
    assert percentile(np.array([np.nan, *[1.0] * 38])) is None
    found = intervals(np.zeros(6, int), np.full((6, 3), 1 / 3), list("abcdef"))
    assert found["accuracy"] and found["auroc"] is None and found["classes"]["viral"]["sensitivity"] is None


def few(of_viral):
    """Twenty films that are right, half of them bacterial, and some viral ones of as many patients that are wrong."""
    labels = np.repeat([0, 1, 2], [10, 10, of_viral])
    right = np.eye(3)[labels] * 0.8 + np.full(3, 1 / 15)
    wrong = np.where(labels[:, None] == 2, np.roll(right, 1, axis=1), right)
    return labels, right, wrong, [str(index) for index in range(len(labels))]


def test_a_class_of_too_few_patients_has_no_interval():
    # Of n patients none is drawn in 1 of e^n resamples: 5 % for three, 1.7 % for four.
    for count, told in ((1, False), (3, False), (4, True)):
        labels, _, wrong, patients = few(count)
        found = intervals(labels, wrong, patients)
        assert (found["classes"]["viral"]["sensitivity"] is not None) == told
        assert (found["balanced_accuracy"] is not None) == told and found["accuracy"] is not None
        if told:  # a resample without the class would have a balanced accuracy of 1, which no films with it can
            assert found["balanced_accuracy"] == pytest.approx([2 / 3, 2 / 3])


def test_films_of_fewer_than_six_patients_have_no_interval():
    labels, probabilities = answers(1, count=30)
    other = probabilities[::-1]
    for count in (1, 2, 5, 6):
        patients = [str(film % count) for film in range(30)]
        values, bounds = estimate(lambda weights: metrics.measure(labels, probabilities, weights), patients)
        found = comparison.differences(labels, probabilities, other, patients)
        known = {bounds["accuracy"] is not None, bounds["binary"]["auroc"] is not None, bounds["ece"] is not None}
        known |= {found[name]["interval"] is not None for name in ("accuracy", "log_loss", "ece")}
        assert known == {count == 6} and values["accuracy"] and found["log_loss"]["difference"]
        said = "(too few such patients for an interval)" in metrics.table(metrics.score(labels, probabilities), bounds)
        assert said == (count < 6)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (1, "(too few such patients for an interval)"),
        (4, "(+1.0000 to +1.0000)  4 patients decided differently"),
        (5, "(+1.0000 to +1.0000)  5 patients decided differently"),
        (6, "(+1.0000 to +1.0000)  *"),
    ],
)
def test_a_difference_on_too_few_patients_is_no_finding(count, told, tmp_path, capsys):
    labels, right, wrong, patients = few(count)
    a, b = (write(tmp_path / f"{name}.csv", labels, p, patients) for name, p in (("a", right), ("b", wrong)))
    compare.main([str(a), str(b)])
    lines = {line[:24].strip(): line[24:].split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[1:15]}
    assert lines["viral sensitivity"] == told
    # More patients are asked for these, but no more of them are decided differently.
    for name in ("accuracy", "macro f1", "pneumonia sensitivity"):
        assert lines[name].endswith("*") == (count == 6)
    assert lines["log loss"].endswith("*") == (count == 6)
    assert lines["log loss"].endswith("patients answered differently") == (count in (4, 5))
    assert not lines["pneumonia specificity"].endswith("*") and not lines["bacterial sensitivity"].endswith("*")


def test_mcnemar_of_the_published_example():
    # Approval of a prime minister in two surveys: 150 changed to disapproval, 86 to approval. Agresti, Categorical
    # Data Analysis, section 10.1: z^2 = 17.36, P < .001.
    first = np.repeat([True, True, False, False], [794, 150, 86, 570])
    second = np.repeat([True, False, True, False], [794, 150, 86, 570])
    test = comparison.mcnemar(first, second)
    assert test[:2] == (150, 86)
    assert test.p_value == pytest.approx(stats.chi2.sf(17.36, 1), rel=0.25)  # the exact test is a little larger
    assert test.p_value == pytest.approx(2 * stats.binom.cdf(86, 236, 0.5))
    assert comparison.mcnemar(first, first).p_value == 1


def delong_by_definition(truth, first, second):
    """Equations 3 to 6 of DeLong et al. 1988, pair by pair."""
    components = []
    for scores in (first, second):
        psi = np.array([[(x > y) + 0.5 * (x == y) for y in scores[~truth]] for x in scores[truth]])
        components.append((psi.mean(), psi.mean(axis=1), psi.mean(axis=0)))
    (a, a10, a01), (b, b10, b01) = components
    s10, s01 = (np.cov(pair) for pair in ((a10, b10), (a01, b01)))
    covariance = s10 / truth.sum() + s01 / (~truth).sum()
    contrast = np.array([1, -1])
    return a, b, np.sqrt(contrast @ covariance @ contrast)


def test_delong_is_its_definition():
    labels, one = answers(3, 0.8, 80)
    _, other = answers(4, 1.5, 80)
    scores = [np.round(1 - probabilities[:, 0], 1) for probabilities in (one, other)]  # with ties
    truth = labels != 0
    test = comparison.delong(truth, *scores)
    expected = delong_by_definition(truth, *scores)
    np.testing.assert_allclose(test[:2], expected[:2], rtol=1e-9)
    assert test.p_value == pytest.approx(2 * stats.norm.sf(abs(expected[0] - expected[1]) / expected[2]))
    assert comparison.delong(truth, scores[0], scores[0]).p_value == 1
    truth = np.array([False, False, True, True])
    two = comparison.delong(truth, truth.astype(float), np.zeros(4))  # neither area has a spread
    assert (two.first, two.second) == (1, 0.5) and np.isnan(two.p_value)
    with pytest.raises(ValueError, match="80 positives and 0 negatives; two of each"):
        comparison.delong(np.ones(80, bool), *scores)
    with pytest.raises(ValueError, match="1 positives and 79 negatives"):
        comparison.delong(np.arange(80) == 3, *scores)


def test_delong_is_level_where_nothing_differs():
    random = np.random.default_rng(7)
    p_values = []
    for _ in range(300):
        truth = random.random(100) < 0.5
        scores = truth + random.normal(0, 1, (2, 100)) + random.normal(0, 1, 100)
        p_values.append(comparison.delong(truth, *scores).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def write(path, labels, probabilities, patients=None):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "patient", "label", *CLASSES))
        for index in np.random.default_rng(8).permutation(len(labels)):  # in any order
            patient = patients[index] if patients else f"p{index // 2}"
            row = (f"{value:.7f}" for value in probabilities[index])
            writer.writerow((f"film{index:04d}", patient, CLASSES[labels[index]], *row))
    return path


def test_two_files_are_compared(tmp_path, capsys):
    labels, strong = answers(5, 2.5)
    _, weak = answers(6, 1.0)
    a, b = write(tmp_path / "a.csv", labels, strong), write(tmp_path / "b.csv", labels, weak)
    compare.main([str(a), str(b)])
    out = capsys.readouterr().out
    assert "300 films of 150 patients; first minus second" in out
    one, other = (metrics.score(labels, probabilities) for probabilities in (strong, weak))
    line = next(line for line in out.splitlines() if line.strip().startswith("accuracy"))
    assert f"{one['accuracy'] - other['accuracy']:+.4f}" in line and line.endswith("*")
    assert f"AUROC {one['binary']['auroc']:.4f} and {other['binary']['auroc']:.4f}; p = " in out
    compare.main([str(a), str(a)])
    out = capsys.readouterr().out
    assert "+0.0000 (+0.0000 to +0.0000)" in out and "*" not in out and "p = 1" in out


def test_differences_are_of_the_same_resamples():
    labels, probabilities = answers(5)
    patients = [str(index) for index in range(len(labels))]
    worse = probabilities.copy()
    worse[:30] = np.roll(worse[:30], 1, axis=1)
    found = comparison.differences(labels, probabilities, worse, patients)["accuracy"]
    test = comparison.mcnemar(*(given.argmax(axis=1) == labels for given in (probabilities, worse)))
    assert found["difference"] * len(labels) == pytest.approx(test.only_first - test.only_second)
    # Only the films on which they differ vary, so the interval is far narrower than of two independent shares.
    half = 1.96 * np.sqrt(test.only_first + test.only_second) / len(labels)
    low, high = found["interval"]
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_differences_against_scipys_bootstrap_of_patients():
    labels, one = answers(5)
    _, other = answers(6, 1.0)
    patients = [str(index // 4) for index in range(len(labels))]
    found = comparison.differences(labels, one, other, patients)["accuracy"]
    gains = (one.argmax(axis=1) == labels).astype(float) - (other.argmax(axis=1) == labels)
    theirs = stats.bootstrap(
        (gains.reshape(-1, 4).mean(axis=1),), np.mean, n_resamples=4000, method="percentile", rng=5
    ).confidence_interval
    np.testing.assert_allclose(found["interval"], [theirs.low, theirs.high], atol=0.006)


def test_the_interval_of_a_difference_in_calibration_error_holds_the_true_one():
    sharpened = metrics.score(*answers_of_known_calibration(99, 200_000, 0.6))
    held = dict.fromkeys(BIASED, 0)
    for seed in range(8):
        labels, true = answers_of_known_calibration(seed, 300, 1.0)
        found = comparison.differences(labels, true, rescale(true, 0.6, (0, 0, 0)), [str(film) for film in range(300)])
        for name in held:
            low, high = found[name]["interval"]
            held[name] += low <= -sharpened[name] <= high
    assert min(held.values()) >= 7  # percentiles of the differences hold 1 and 0
    same = comparison.differences(labels, true, true, [str(film) for film in range(300)])
    assert same["ece"] == {"difference": 0, "interval": [0, 0]}


def test_files_that_cannot_be_compared(tmp_path, capsys):
    labels, probabilities = answers(5)
    a = write(tmp_path / "a.csv", labels, probabilities)
    with pytest.raises(UsageError, match="1 files given; two are compared"):
        compare.main([str(a)])
    with pytest.raises(JobError, match="absent.csv cannot be read"):
        compare.main([str(a), str(tmp_path / "absent.csv")])
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    with pytest.raises(
        JobError,
        match="other.csv holds no predictions .no column bacterial, label, name, normal, patient, viral; columns",
    ):
        compare.main([str(a), str(tmp_path / "other.csv")])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(JobError, match="empty.csv holds no predictions .the file is empty"):
        compare.main([str(a), str(tmp_path / "empty.csv")])
    with a.open("a") as file:
        file.write("film0000,p0,normal,1,0,0\n")
    with pytest.raises(JobError, match="predictions .301 rows of 300 films: 'film0000' is there more than once"):
        compare.main([str(a), str(a)])
    off = write(tmp_path / "off.csv", labels, np.full((300, 3), 0.9))
    with pytest.raises(JobError, match="off.csv holds no predictions .line 2 has probabilities of sum 2.7, which must"):
        compare.main([str(off), str(off)])
    with pytest.raises(JobError, match="is a folder; give the predictions.csv of a report"):
        compare.main([str(tmp_path), str(off)])
    a = write(tmp_path / "a.csv", labels, probabilities)
    rounded = write(tmp_path / "rounded.csv", labels, probabilities.round(2) + 1e-9)
    with pytest.raises(JobError, match=r"of sum (0.99|1.01)\d*, which must be 1 within 0.0001; take the table"):
        compare.main([str(a), str(rounded)])
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + a.read_bytes())  # as spreadsheets save it
    compare.main([str(a), str(marked)])
    assert "DeLong, pneumonia" in capsys.readouterr().out
    others = write(tmp_path / "others.csv", labels, probabilities, patients=["p"] * 300)
    with pytest.raises(JobError, match="their patients differ in 300 films, such as 'film0000'; evaluate both"):
        compare.main([str(a), str(others)])
    (tmp_path / "sick.csv").write_text(a.read_text().replace(",bacterial,0", ",sick,0", 1))
    with pytest.raises(JobError, match=r"sick.csv .*line \d+ is labelled 'sick'; normal, bacterial, viral are known"):
        compare.main([str(a), str(tmp_path / "sick.csv")])
    compare.main([str(others), str(others)])
    told = capsys.readouterr().out
    assert "300 films of 1 patient; first" in told and "of so few patients their p says nothing." in told
    assert told.count("(too few such patients for an interval)") == 14
    nobody = write(tmp_path / "nobody.csv", labels, probabilities, patients=["p"] * 298 + ["", ""])
    with pytest.raises(JobError, match=r"nobody.csv holds no predictions .line \d+ has no patient"):
        compare.main([str(nobody), str(nobody)])
    one = write(tmp_path / "one.csv", (np.arange(300) == 7).astype(int), probabilities)
    compare.main([str(one), str(one)])  # with one film of pneumonia no spread is known
    assert "DeLong, pneumonia" not in capsys.readouterr().out
    fewer = write(tmp_path / "fewer.csv", labels[:299], probabilities[:299])
    with pytest.raises(
        JobError, match="same films: 1 film in one alone, such as 'film0299' in .*a.csv; evaluate both on the same"
    ):
        compare.main([str(a), str(fewer)])
    few = write(tmp_path / "few.csv", four := np.array([0, 0, 1, 1]), np.eye(3)[four])
    even = write(tmp_path / "even.csv", four, np.full((4, 3), 1 / 3))
    compare.main([str(few), str(even)])
    told = capsys.readouterr().out
    assert "AUROC 1.0000 and 0.5000; p = not defined, as neither has a spread" in told and ALIKE not in told
    compare.main([str(few), str(few)])
    assert ALIKE not in capsys.readouterr().out  # of so few patients there are no intervals
    compare.main([str(a), str(a)])
    assert ALIKE in capsys.readouterr().out
    flipped = write(tmp_path / "flipped.csv", (labels + 1) % 3, probabilities)
    with pytest.raises(JobError, match="their labels differ"):
        compare.main([str(a), str(flipped)])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("label", "label,label", "more than one column label"),
        ("film0001,p1,", "film0001,", r"line 3 ends before .*refused; the file may be cut short"),
        ("film0001,p1,", "film0001,p1,p1,", "line 3 has more cells than there are columns"),
        ("refused\n", "refused\n,p,normal,1,0,0,0\n", "line 2 has no name"),
        ("refused\n", "refused\nfilm, ,normal,1,0,0,0\n", "line 2 has no patient"),
        ("refused\n", "refused\nfilm,p,normal,1,0,0,0,7\n", "line 2 has more cells than there are columns"),
        ("refused\n", "refused\nfilm,p,normal,one,0,0,0\n", "line 2 has 'one' for normal, which is no number"),
        ("refused\n", "refused\nfilm,p,normal,nan,0,0,0\n", "line 2 has nan for normal; a probability is from 0 to 1"),
        ("refused\n", "refused\nfilm,p,normal,1.1,-.1,0,0\n", "line 2 has 1.1 for normal; a probability is from 0"),
    ],
)
def test_a_table_that_is_damaged_is_told_with_the_line(tmp_path, old, new, told):
    path = tmp_path / "a.csv"
    predictions.write(
        path, ["film0000", "film0001"], ["p0", "p1"], np.array([0, 1]), np.eye(3)[:2], np.zeros(2, dtype=bool)
    )
    predictions.read(path)
    text = path.read_bytes().decode().replace("\r\n", "\n")
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(JobError, match=f"a.csv holds no predictions .{told}"):
        predictions.read(path)


def test_names_of_films_are_printed_without_what_moves_the_cursor(tmp_path):
    files = []
    for name in ("\x1b[2J", "other"):
        files.append(tmp_path / f"{len(files)}.csv")
        predictions.write(files[-1], [name], ["p"], np.array([0]), np.eye(3)[:1], np.zeros(1, dtype=bool))
    with pytest.raises(JobError, match=r"such as '\\x1b\[2J' in "):
        compare.main([str(file) for file in files])


def test_an_interval_of_a_calibration_error_reaches_as_far_as_both_ways_and_holds_its_figure():
    values = np.linspace(0.3, 0.5, 2001)

    def interval(figure, values=values):
        return holding(figure, reflected(figure, values), values)

    # Reflected .2985 to .4750, and the resamples less what they are off on average .305 to .495.
    assert interval(0.4) == pytest.approx([(0.32 - 0.495**2) ** 0.5, 0.495], abs=1e-6)
    assert interval(0.2) == pytest.approx([0, 0.295])  # every resample moves it up
    assert interval(0.6) == pytest.approx([0.505, (0.72 - 0.305**2) ** 0.5], abs=1e-6)  # or down
    assert interval(0.2, np.full(3, np.nan)) is None
