#!/usr/bin/env python3
"""Train ResNet-8 with cached draws that repeat and with fresh ones, and print accuracy against joules as Markdown.

    scripts/study_reuse.py CIFAR10 OUT [--picture FILE]

CIFAR10 is a folder with train.parquet and test.parquet, in the layout `image: struct<bytes, path>, label`. Two chains, K in 1, 2, 4, 8
variants and fresh draws, three seeds: 30 trainings of 20 epochs of 5,000 images. Trainings of one seed start with the same weights
and read the images in the same order. OUT keeps the caches and a line for each training: what is there is not done again. Takes about
an hour on 2 cores. --picture draws the results too, as an SVG file.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from train_resnet8 import BATCH_SIZE, sgd

from environment import argument_parser, describe, enter
from tables import print_head, print_row

import joulecache as jc

IMAGES, EPOCHS = 5_000, 20
SEEDS = (0, 1, 2)
MARGIN = 0.5  # points of accuracy: a cache whose whole interval lies above the negative of it is not inferior
PREFIX = "decode|resize(32)|pad(4, padding_mode='reflect')"
CHAINS = {
    "crop, flip": "random_crop(32)|flip_lr",
    "crop, flip, trivial_augment": "random_crop(32)|flip_lr|trivial_augment",
}
FRESH = "fresh"
DRAWS: tuple[int | str, ...] = (1, 2, 4, 8, FRESH)


class Arm(NamedTuple):
    """A training: its chain by name, its draws (a number of variants, or fresh ones) and its seed."""

    chain: str
    draws: int | str
    seed: int


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        chain: Name of the chain.
        draws: Number of cached variants, or "fresh".
        seed: Seed of the weights, the order and the draws.
        accuracy: Share of the test images that are classified correctly.
        build_j: Active joules of building the cache.
        train_j: Active joules of the training, its input included.
        flags: What disturbed the measurement of the training.
    """

    chain: str
    draws: int | str
    seed: int
    accuracy: float
    build_j: float
    train_j: float
    flags: tuple[str, ...]

    @property
    def arm(self) -> Arm:
        """The training's arm."""
        return Arm(self.chain, self.draws, self.seed)


# Trainings ------------------------------------------------------------------------------------------------------------


def main(cifar10: Path, out: Path, picture: Path | None) -> None:
    """Run the trainings that are missing, and print all."""
    out.mkdir(parents=True, exist_ok=True)
    meter, record = jc.Meter(), out / "trainings.jsonl"
    found = read(record)
    arms = [Arm(*each) for each in itertools.product(CHAINS, DRAWS, SEEDS)]
    arms.sort(key=lambda arm: arm.seed)  # a stopped study has whole seeds
    for number, arm in enumerate(arms):
        if arm not in found:
            print(
                f"{arm.chain}, {arm.draws}, seed {arm.seed}: {number + 1} of {len(arms)}", file=sys.stderr, flush=True
            )
            found[arm] = run(arm, cifar10, out, meter)
            with open(record, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(dataclasses.asdict(found[arm])) + "\n")
    print_results(list(found.values()), meter)
    if picture:
        draw(list(found.values()), picture)


def read(record: Path) -> dict[Arm, Trained]:
    """Return the finished trainings; a line that was cut off is one to repeat."""
    found = {}
    for line in record.read_text("utf-8").splitlines() if record.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        trained = Trained(**{**values, "flags": tuple(values["flags"])})
        found[trained.arm] = trained
    return found


def run(arm: Arm, cifar10: Path, out: Path, meter: jc.Meter) -> Trained:
    """Build the cache of a training, train with the settings of scripts/train_resnet8.py, and evaluate."""
    import keras

    from joulecache.pipelines.models.architectures import build_architecture
    from joulecache.pipelines.models.fitting import compile_model

    test = out / "test"
    jc.precompute(cifar10 / "test.parquet", test, "decode|resize(32)", val_fraction=0.0)
    cut = f"{PREFIX} || {CHAINS[arm.chain]}" if arm.draws == FRESH else f"{PREFIX}|{CHAINS[arm.chain]}"
    variants = 1 if isinstance(arm.draws, str) else arm.draws
    cache = out / f"{list(CHAINS).index(arm.chain)}-{arm.draws}-{arm.seed}"
    options: dict[str, Any] = {"variants": variants, "seed": arm.seed, "limit": IMAGES, "val_fraction": 0.0}
    built = jc.precompute(cifar10 / "train.parquet", cache, cut, meter=meter, **options).manifest
    assert built.energy is not None
    keras.utils.set_random_seed(arm.seed)
    model = build_architecture("resnet8", (32, 32, 3), 10)
    steps = EPOCHS * -(-IMAGES // BATCH_SIZE)
    compile_model(model, 0.0, optimizer=sgd(steps))
    train = jc.load(cache, "train", BATCH_SIZE, seed=arm.seed)
    with meter.window(f"{cache.name}") as window:
        model.fit(train, epochs=EPOCHS, shuffle=False, verbose=0)
    held_out = jc.load(test, "train", 500, shuffle=False)
    accuracy = model.evaluate(held_out, verbose=0, return_dict=True)["accuracy"]
    keras.backend.clear_session()
    energy = window.energy
    return Trained(*arm, float(accuracy), built.energy.energy.active_j, energy.active_j, tuple(energy.flags))


# Results --------------------------------------------------------------------------------------------------------------


def of(results: Sequence[Trained], chain: str, draws: int | str) -> list[Trained]:
    """Return the trainings with some draws of a chain, by seed."""
    return sorted((each for each in results if each.arm[:2] == (chain, draws)), key=lambda each: each.seed)


def print_results(results: Sequence[Trained], meter: jc.Meter) -> None:
    """Print accuracy and joules, and the difference in accuracy from fresh draws, in pairs of one seed."""
    from joulecache.pipelines.core.statistics import mean_of

    print(
        f"ResNet-8 on {IMAGES:,} images of CIFAR-10, {EPOCHS} epochs, {len(SEEDS)} seeds, accuracy on the test images. "
        f"{describe('tensorflow', 'keras', meter=meter)}.\n"
    )
    print_head(
        "chain",
        "draws",
        "uses of each",
        "accuracy, %",
        "against fresh, points",
        "",
        "J",
        "J of the build",
        text_columns=2,
    )
    for chain, draws in itertools.product(CHAINS, DRAWS):
        found, fresh = of(results, chain, draws), of(results, chain, FRESH)
        points = mean_of([100 * (one.accuracy - other.accuracy) for one, other in zip(found, fresh, strict=True)])
        difference = f"{points.value:+.2f} ({points.low:+.2f} to {points.high:+.2f})" if draws != FRESH else ""
        accuracy, train_j, build_j = (
            mean_of([getattr(each, name) for each in found]).value for name in ("accuracy", "train_j", "build_j")
        )
        uses = 1 if isinstance(draws, str) else EPOCHS / draws
        verdict = "" if draws == FRESH else judged(points.low or 0.0, points.high or 0.0)
        print_row(
            chain, f"K = {draws}" if draws != FRESH else FRESH, f"{uses:g}", f"{100 * accuracy:.2f}", difference, verdict,
            f"{train_j + build_j:.0f}", f"{build_j:.1f}",
        )  # fmt: skip
    flagged = sum(bool(each.flags) for each in results)
    print(
        f"\nJ: active joules of the build and the training, a mean over seeds; {flagged} of {len(results)} trainings ran while other "
        f"processes used the processors. Against fresh: the mean difference in pairs of one seed with its 95% interval (Student's t, "
        f"{len(SEEDS) - 1} degrees of freedom). Not inferior: the whole interval lies above -{MARGIN} points; worse: below 0."
    )


def judged(low: float, high: float) -> str:
    """Return what the interval of a difference shows."""
    if low > -MARGIN:
        return "not inferior"
    return "worse" if high < 0 else "not shown"


def draw(results: Sequence[Trained], path: Path) -> None:
    """Draw accuracy against the number of draws for both chains, with a dot for each seed and fresh draws as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    places = {draws: place for place, draws in enumerate(DRAWS)}
    for axes, chain in zip(figure.subplots(1, len(CHAINS), sharey=True), CHAINS, strict=True):
        fresh = [100 * each.accuracy for each in of(results, chain, FRESH)]
        axes.axhline(sum(fresh) / len(fresh), color="#8a8f98", linestyle="--", linewidth=1)
        axes.axhspan(
            sum(fresh) / len(fresh) - MARGIN, sum(fresh) / len(fresh), color="#8a8f98", alpha=0.15, linewidth=0
        )
        for draws, place in places.items():
            accuracies = [100 * each.accuracy for each in of(results, chain, draws)]
            axes.plot([place] * len(accuracies), accuracies, "o", color="#2f6fde", markersize=4, alpha=0.6)
            axes.plot(place, sum(accuracies) / len(accuracies), "_", color="#10243e", markersize=16, markeredgewidth=2)
        axes.set_xticks(list(places.values()), [f"K = {each}" if each != FRESH else FRESH for each in places])
        axes.set_title(chain, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("accuracy on test images, %")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    enter()
    parser = argument_parser(__doc__)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    main(given.cifar10, given.out, given.picture)
