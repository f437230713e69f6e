"""How often intervals over seeds hold the truth, and how often a paired test errs under the null.

Simulated: 3 classes (60%, 25%, 15%), 400 lesions of 1 to 3 images. The logits of a net have an
effect of the class, the lesion, the image and the net's own noise, and an offset for each class
that differs between seeds by the given deviation. The truth is the mean over 8,000 nets.

python -m benchmarks.coverage [SIMULATIONS]
python -m benchmarks.coverage few [SIMULATIONS]  # one net, a class with few lesions
"""

import sys

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from src.metrics.bootstrap import gather, intervals, metric_statistics, resample
from src.metrics.paired import paired_difference

SHARES = (0.60, 0.25, 0.15)
LESIONS = 400
METRICS = ["balanced_accuracy", "recall/c2"]
SAMPLES = 400
FEW = (  # lesions of each class, and the true recall of each
    ((100, 50, 3), (0.8, 0.7, 0.6)),
    ((100, 50, 5), (0.8, 0.7, 0.8)),
)


def simulate(
    rng: np.random.Generator, seeds: int, deviation: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lesions (N,), labels (N,) and probabilities (S, N, 3) of nets with such offsets."""
    classes = len(SHARES)
    of_lesion = rng.choice(classes, size=LESIONS, p=SHARES)
    group = np.repeat(np.arange(LESIONS), rng.integers(1, 4, size=LESIONS))
    label = of_lesion[group]
    logits = 1.6 * np.eye(classes)[label]
    logits += rng.normal(0, 1.0, (LESIONS, classes))[group]
    logits += rng.normal(0, 0.7, (len(group), classes))
    nets = logits + rng.normal(0, deviation, (seeds, 1, classes))
    nets = np.exp(nets + rng.normal(0, 0.5, nets.shape))
    return group, label, nets / nets.sum(axis=2, keepdims=True)


def frames(group: np.ndarray, label: np.ndarray, probability: np.ndarray) -> list[pd.DataFrame]:
    """Recorded predictions of each net."""
    names = np.array([f"c{number}" for number in range(len(SHARES))])
    images = {"image_id": np.arange(len(group)), "group": group, "label": names[label]}
    columns = [f"p/{name}" for name in names]
    return [
        pd.DataFrame(images).assign(**dict(zip(columns, net.T, strict=True))) for net in probability
    ]


def truth(rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Balanced accuracy and recall of c2 as means over many nets and images, (2,)."""
    recalls = []
    for _ in range(200):
        _, label, probability = simulate(rng, 40, deviation)
        right = probability.argmax(axis=2) == label
        recalls.append([right[:, label == number].mean() for number in range(len(SHARES))])
    mean = np.mean(recalls, axis=0)
    return np.array([mean.mean(), mean[2]])


def situation(seeds: int, deviation: float, simulations: int) -> dict[str, str]:
    """A row of the table: shares of simulations, with exact 95% intervals."""
    rng = np.random.default_rng([seeds, round(100 * deviation)])
    true = truth(rng, deviation)
    names = ["covered: balanced accuracy", "covered: recall", "p <= 0.05: recall"]
    counts = pd.Series(0, index=names)
    for number in range(simulations):
        nets = frames(*simulate(rng, 2 * seeds, deviation))
        table = intervals(nets[:seeds], METRICS, SAMPLES, number)
        inside = (table["low"] <= true) & (true <= table["high"])
        p = paired_difference(nets[:seeds], nets[seeds:], METRICS[1], SAMPLES, number).p_bootstrap
        counts += [*inside, p <= 0.05]
    shares = {}
    for name, count in counts.items():
        low, high = binomtest(int(count), simulations).proportion_ci()
        shares[str(name)] = f"{count / simulations:.3f} [{low:.3f}, {high:.3f}]"
    return {"seeds": str(seeds), "deviation": f"{deviation:g}", **shares}


def few_lesions(
    lesions: tuple[int, ...], recalls: tuple[float, ...], simulations: int
) -> dict[str, str]:
    """Simulations in which intervals of the balanced accuracy of one net hold the mean recall."""
    rng, label = np.random.default_rng(lesions[-1]), np.repeat(range(len(lesions)), lesions)
    counts = dict.fromkeys(("with the exact interval", "bootstrap alone"), 0)
    for number in range(simulations):
        right = rng.random(len(label)) < np.array(recalls)[label]
        predicted = np.eye(len(lesions))[np.where(right, label, (label + 1) % len(lesions))]
        net = frames(np.arange(len(label)), label, predicted[None])
        row, gathered = intervals(net, METRICS[:1], SAMPLES, number).iloc[0], gather(net)
        statistics = [metric_statistics(gathered, METRICS[:1])]
        drawn = resample(gathered, statistics, SAMPLES, np.random.default_rng(number))
        ends = [(row["low"], row["high"]), np.quantile(drawn, [0.025, 0.975])]
        for name, (low, high) in zip(counts, ends, strict=True):
            counts[name] += int(low <= np.mean(recalls) <= high)
    shares = {name: f"{count / simulations:.3f}" for name, count in counts.items()}
    return {"lesions": str(lesions), "recalls": str(recalls), **shares}


def main() -> None:
    """Print the table."""
    few = sys.argv[1:2] == ["few"]
    numbers = sys.argv[2:] if few else sys.argv[1:]
    simulations = int(numbers[0]) if numbers else 400
    rows = [few_lesions(*case, simulations) for case in FEW if few] or [
        situation(seeds, deviation, simulations)
        for deviation in (0.05, 0.3, 0.6)
        for seeds in (3, 5)
    ]
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
