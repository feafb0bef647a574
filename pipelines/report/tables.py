"""The tables of a report, made once from its body, so that every form of it carries the same figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from joulecache.pipelines.report import figures
from joulecache.pipelines.report.verdict import PARTS, Body, active_tag, model_energies, title_of

NO_COUNTRY = "no country given"
_RUNS = "runs.jsonl"
_HASH_SHOWN = 16  # hex digits: enough to tell two files apart


@dataclass(frozen=True)
class Cell:
    """One figure or text. `tag`: how its joules were obtained; `tone`: a finding; `ends`: of its interval."""

    text: str
    tag: str | None = None
    tone: str | None = None
    ends: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column; figures stand to the right."""

    title: str
    figure: bool = True


@dataclass(frozen=True)
class Table:
    """A table with its title and a remark below."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    remark: str = ""


def _table(title: str, columns: Sequence[str], rows: Iterable[Iterable[Cell | str]], remark: str = "") -> Table:
    """Make a table; a column whose title begins with a dot holds texts instead of figures."""
    heads = tuple(Column(name.removeprefix("."), not name.startswith(".")) for name in columns)
    cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(title, heads, cells, remark)


def _spread(text: str, tag: str | None = None) -> Cell:
    """Make a cell of ``value (low to high)``."""
    value, _, ends = text.partition(" (")
    return Cell(value, tag, ends=ends and f"({ends}")


def _joules_column(energies: Sequence[Body], tag: str) -> list[Cell]:
    like = figures.largest(energy["value"] for energy in energies)
    return [_spread(figures.joules_range(energy, like), tag) for energy in energies]


def arms(result: Body, body: Body) -> Table:
    """Return what each arm costs on one workload."""
    arms, reference, tag = result["arms"], body["reference"], active_tag(body)
    spent = _joules_column([arm["active_j_per_1000"] for arm in arms], tag)
    columns: dict[str, list[Cell | str]] = {
        ".Arm": [arm["name"] for arm in arms],
        "CPU per image": [f"{figures.number(arm['cpu_us_per_image'])} µs" for arm in arms],
        "Active energy per 1,000 images (low to high)": [*spent],
        "Images/s": [figures.number(arm["images_per_s"]) for arm in arms],
    }
    if len(arms) > 1:
        columns[f"Ratio to {reference} (95% interval)"] = [
            _spread("1 (reference)" if arm["name"] == reference else figures.ratio_range(arm["ratio"])) for arm in arms
        ]
    if body["cached"] is not None:
        like = figures.largest(arm["one_time"]["value"] for arm in arms)
        columns["Spent once (low to high)"] = [_once(arm["one_time"], like, tag) for arm in arms]
    if len(arms) > 1:
        columns[".Finding"] = [
            "reference" if arm["name"] == reference else Cell(arm["finding"], tone=arm["finding"]) for arm in arms
        ]
    if any(arm["accuracy"] for arm in arms):
        columns["Accuracy (range of runs)"] = [_accuracy(arm["accuracy"]) for arm in arms]
    remark = (
        "Active energy is without the idle share of the machine. Low and high are the ends of the coefficients; they move all arms "
        "together, so a ratio is known better than its parts."
    )
    if body["cached"] is not None:
        remark += " Spent once: the build, or what the epoch that fills cache() costs beyond a later one."
    return _table("Arms", list(columns), zip(*columns.values(), strict=True), remark)


def _once(energy: Body, like: float, tag: str) -> Cell:
    # an arm that spends nothing at first: there is nothing to measure or to model
    return _spread(figures.joules_range(energy, like), tag) if energy["high"] else Cell(figures.joules(0, like))


def _accuracy(accuracy: Sequence[float] | None) -> Cell:
    return Cell(figures.NOT_MEASURED) if accuracy is None else _spread(figures.share_range(*accuracy))


def parts(result: Body, body: Body) -> Table:
    """Return what the parts of a training cost by themselves, beside the whole."""
    tag = active_tag(body)
    steps = {each["name"]: each["images"] / each["batches"] for each in body["pipelines"]}
    measured = [(arm["name"], part) for arm in result["arms"] for part in (*arm["parts"], arm)]
    energies = _joules_column([part["active_j_per_1000"] for _, part in measured], tag)
    rows = []
    for (name, part), energy in zip(measured, energies, strict=True):
        whole = part["name"] == name
        per_step = steps[name] / 1000
        rows.append(
            (
                name,
                "both together" if whole else f"{PARTS.get(part['name'], part['name'])} alone",
                energy,
                figures.joules(part["active_j_per_1000"]["value"] * per_step),
                figures.seconds(part["wall_us_per_image"] / 1e3),
                figures.seconds(part["wall_us_per_image"] * per_step / 1e3),
                _spread("1" if whole else figures.ratio_range(part["ratio"])),
            )
        )
    columns = (
        ".Pipeline",
        ".What ran",
        "Active energy per 1,000 images (low to high)",
        "Energy per step",
        "Time per 1,000 images",
        "Time per step",
        "Energy, to both together (95% interval)",
    )
    remark = (
        "All in the same blocks. Training alone: as many steps, on a batch of the same shape that is kept in memory. While a step is "
        "computed the next batch is made: times overlap, and need not add up to that of both together."
    )
    return _table("The input and the training by themselves", columns, rows, remark)


def costs(result: Body, body: Body) -> Table:
    """Return what each arm costs once, in every epoch, and for every day that its cache is kept."""
    arms, tag, records = result["arms"], active_tag(body), body["records"]["train"]
    like = figures.largest(arm["one_time"]["value"] for arm in arms)
    epochs = [{end: energy * records / 1000 for end, energy in arm["active_j_per_1000"].items()} for arm in arms]
    rows = [
        (
            arm["name"],
            _once(arm["one_time"], like, tag),
            epoch,
            kept_for_a_day(body["build"]) if arm["name"] == body["cached"] else "nothing on disk",
        )
        for arm, epoch in zip(arms, _joules_column(epochs, tag), strict=True)
    ]
    columns = (".Arm", "Once (low to high)", "Per epoch (low to high)", "Per day that it is kept (low to high)")
    remark = (
        "Active energy. Ratios are of epochs, break-evens of epochs and of what is spent once. Days are in neither."
    )
    return _table("Costs, each apart", columns, rows, remark)


def comparisons(result: Body, body: Body) -> Table:
    """Return the cache against each other arm, with its break-even."""
    columns = (
        f".{body['cached'].capitalize()} against",
        "Ratio (95% interval)",
        ".Finding",
        ".Why",
        "Break-even (95% interval)",
        f"Ratio over {body['horizon_epochs']} epochs, build included",
    )
    rows = [
        (
            compared["other"],
            _spread(figures.ratio_range(compared["ratio"])),
            Cell(compared["finding"], tone=compared["finding"]),
            compared["why"],
            _spread(figures.epochs_to(compared["break_even"], compared["ratio"])),
            figures.plain_ratio(compared["horizon_ratio"]),
        )
        for compared in result["comparisons"]
    ]
    return _table("The cache against each other arm", columns, rows)


def more(result: Body, tag: str, country: str | None) -> Table:
    """Return what else was seen in the same runs."""
    arms = result["arms"]
    total = _joules_column([arm["total_j_per_1000"] for arm in arms], tag)
    columns = (
        ".Arm",
        "Runs",
        "Images per run",
        "Total energy per 1,000 images, idle included",
        "Time per image",
        "Read per image",
        "Peak memory",
        "CO2 per 1,000 images",
    )
    rows = [
        (
            arm["name"],
            figures.count(arm["runs"]),
            figures.count(arm["images_per_run"]),
            whole,
            f"{figures.number(arm['wall_us_per_image'])} µs",
            figures.data_size(arm["read_bytes_per_image"]),
            figures.data_size(arm["peak_rss_bytes"]),
            _carbon(arm["carbon_g_per_1000"], country),
        )
        for arm, whole in zip(arms, total, strict=True)
    ]
    return _table("More of the same runs", columns, rows)


def beside(result: Body) -> Table:
    """Return what else the machine did during the runs of each arm."""

    def share(value: float | None) -> str:
        return figures.NOT_MEASURED if value is None else figures.share(value)

    shares = {
        "Other processes": "others",
        "Taken by the hypervisor": "steal",
        "Waiting for a processor": "cpu_stall",
        "Waiting for memory": "memory_stall",
        "Waiting for a disk": "io_stall",
    }
    rows = [
        (
            arm["name"],
            *(share(arm["contamination"][name]) for name in shares.values()),
            f"{figures.count(arm['flagged_runs'])} of {figures.count(arm['runs'])}",
            ", ".join(arm["flags"]) or "none",
        )
        for arm in result["arms"]
    ]
    remark = (
        "The first two are shares of the time of all processors, the others of the time in which at least one task on the machine "
        "waited (Linux pressure): threads and reads of the arm itself count there too. Runs that are short beside the ticks in which the "
        "kernel counts need more of others' work to be flagged."
    )
    columns = (".Arm", *shares, "Flagged runs", ".Flags of all together")
    return _table("What else the machine did", columns, rows, remark)


def _carbon(value_g: float | None, country: str | None) -> str:
    return NO_COUNTRY if value_g is None and country is None else figures.grams(value_g)


def model_files(compression: Body) -> Table:
    """Return the figures of every model file."""
    variants = compression["variants"]
    energies = [variant["energy_per_image"] for variant in variants]
    like = figures.largest(energy["active_j"] for energy in energies)
    rows = [
        (
            variant["name"],
            figures.count(variant["parameters"]),
            figures.count(variant["nonzero_weights"]),
            figures.count(variant["macs"]),
            figures.data_size(variant["file_bytes"]),
            figures.data_size(variant["gzip_bytes"]),
            _spread(figures.share_range(variant["accuracy"], variant["accuracy_low"], variant["accuracy_high"])),
            _spread(
                f"{figures.number(variant['cpu_ms_per_image'])} ms ({figures.number(variant['cpu_ms_per_image_median'])})"
            ),
            _spread(figures.joules_range(active_ends(energy), like), figures.kind(energy["active"]["method"])),
            variant["dense"] or "-",
            figures.answer(variant["faster_than_dense"]),
        )
        for variant, energy in zip(variants, energies, strict=True)
    ]
    columns = (
        ".Variant",
        "Parameters",
        "Non-zero weights",
        "MACs",
        "File",
        "gzip",
        "Accuracy (95% interval)",
        "CPU per image, fastest (median)",
        "Active energy per image (low to high)",
        ".Compared with",
        ".Faster",
    )
    first = variants[0]
    remark = (
        f"Accuracy on {figures.count(first['images'])} held-out images. CPU: the fastest of {first['runs']} runs and their median, one "
        f"thread, batches of {first['batch_size']}, the images already in memory. MACs: multiply-accumulates per image. Faster: each of "
        f"the {first['runs']} runs took less CPU time than the run of the dense model beside it. Dense is the unpruned model at the same "
        "precision; an unpruned quantized one is compared with the float32 one."
    )
    return _table("Model files", columns, rows, f"{remark} {_zeros_gain(variants)}".rstrip())


def flagged_models(compression: Body) -> Table | None:
    """Return why the meter flagged energies of model files and of their fine-tunings; None where it flagged none."""
    rows = [
        (what, name, ", ".join(energy["flags"]))
        for what, energies in model_energies(compression).items()
        for name, energy in energies.items()
        if energy["flags"]
    ]
    return _table("What the meter flagged", (".What", ".Variant", ".Why"), rows) if rows else None


def _zeros_gain(variants: Sequence[Body]) -> str:
    """Say what zeros and shared values gain; of time only what models with all their channels showed."""
    named = [variant for variant in variants if "sparse" in variant["name"] or "clustered" in variant["name"]]
    macs = {variant["name"]: variant["macs"] for variant in variants}
    whole = [variant for variant in named if variant["macs"] == macs.get(variant["dense"])]
    faster = [variant["name"] for variant in whole if variant["faster_than_dense"]]
    slower = [variant["name"] for variant in whole if not variant["faster_than_dense"]]
    if not named:
        return ""
    saved = "Zeros and shared values save bytes in a compressed file"
    if not whole:
        return f"{saved}; what they do to time was not measured alone, since channels are gone too."
    if not faster:
        return f"{saved}, not time: this machine's kernels multiply zeros too."
    others = f", but not {', '.join(slower)}" if slower else ""
    return f"{saved}; with as many MACs as its dense model, faster was {', '.join(faster)}{others}."


def active_ends(energy: Body) -> Mapping[str, float]:
    """Return the active part of an energy with its ends."""
    return {"value": energy["active_j"], "low": energy["active_low_j"], "high": energy["active_high_j"]}


def build(build: Body) -> Table:
    """Return what building the cache cost."""
    energy = build["energy"]
    active, total = figures.kind(energy["active"]["method"]), figures.kind(energy["method"])
    whole = {"value": energy["total_j"], "low": energy["low_j"], "high": energy["high_j"]}
    rows: list[tuple[Cell | str, ...]] = [
        ("Active energy (low to high)", _spread(figures.joules_range(active_ends(energy)), active)),
        ("Total energy, idle included", _spread(figures.joules_range(whole), total)),
        ("CPU time", figures.seconds(build["cpu_s"])),
        ("Time", figures.seconds(build["duration_s"])),
        ("Source", figures.data_size(build["source_bytes"])),
        ("Cache", f"{figures.data_size(build['cache_bytes'])}, {build['format']}, {build['encoding']}"),
        ("Variants", figures.count(build["variants"])),
        ("Kept for a day (low to high)", kept_for_a_day(build)),
    ]
    stored = build["storage_per_day"]
    remark = (
        f"The build is spent once. What is kept takes energy every day, {stored['method']}: {stored['source']}. Scope: {stored['scope']}. "
        "It is in no ratio and in no break-even."
    )
    return _table("The build of the cache", (".What", ".Value"), rows, remark)


def kept_for_a_day(build: Body) -> Cell:
    """Return what keeping the cache for a day takes."""
    stored = build["storage_per_day"]
    ends = {"value": stored["value_j"], "low": stored["low_j"], "high": stored["high_j"]}
    return _spread(figures.joules_range(ends), figures.kind(stored["method"]))


def components(energy: Body, of: str) -> Table:
    """Return where the joules of the build or of all runs come from, part by part."""
    rows: list[tuple[Cell | str, ...]] = []
    for name, part in energy["components"].items():
        if part is None:
            rows.append((name, figures.NOT_MEASURED, "", "", "", ""))
            continue
        ends = {"value": part["value_j"], "low": part["low_j"], "high": part["high_j"]}
        spent = _spread(figures.joules_range(ends), figures.kind(part["method"]))
        rows.append((name, spent, part["method"], part["scope"], part["resolution"], part["source"]))
    columns = (".Part", "Energy (low to high)", ".Method", ".Scope", ".Resolution", ".Source")
    return _table(f"Where the joules of {of} come from", columns, rows)


def coefficients(meter: Body) -> Table:
    """Return what the model of energy is made of."""
    rows = [
        (name, *(_coefficient(row.get(end)) for end in ("low", "central", "high")), row["source"])
        for name, row in meter["coefficients"].items()
    ]
    whose = "watts given by the user" if meter["provider"] is None else f"provider {meter['provider']}"
    remark = f"Model: {meter['formula']}. Coefficients version {meter['coefficients_version']}, {whose}."
    return _table("Coefficients", (".Name", "Low", "Central", "High", ".Source"), rows, remark)


def _coefficient(value: float | None) -> str:
    return "none given" if value is None else f"{value:g}"


def control(body: Body) -> Table:
    """Return the A/A control of each workload."""

    def outcome(ratio: Body) -> str:
        if ratio["low"] is None or ratio["high"] is None:
            return "one block cannot show anything"
        return "holds 1" if ratio["low"] <= 1 <= ratio["high"] else "does not hold 1: nothing is claimed"

    rows = [
        (
            title_of(result["workload"]),
            _spread(figures.ratio_range(result["control"])),
            figures.count(result["blocks"]),
            outcome(result["control"]),
        )
        for result in body["workloads"]
    ]
    remark = (
        f"The control measures {body['reference']} against itself in every block: its ratio shows how far two equal things come out "
        "apart."
    )
    return _table("A/A control", (".Workload", "Ratio (95% interval)", "Blocks", ".Outcome"), rows, remark)


def pixels(body: Body) -> Table:
    """Return how far the arms' pictures are apart, and which arms were left out."""
    rows: list[tuple[str, str]] = [(name, figures.number(level)) for name, level in body["pixel_difference"].items()]
    rows += [(name, f"left out: {reason}") for name, reason in body["left_out"].items()]
    remark = f"Mean absolute difference from {body['cached']} over the first batch, in levels of 0 to 255."
    return _table("Do the arms show the same pictures?", (".Arm", ".Pixel difference"), rows, remark)


def repeat(body: Body) -> Table:
    """Return what it takes to run the audit again."""
    provenance = body["provenance"]
    horizon = body["horizon_epochs"]
    rows = [
        ("Seed", str(provenance["seed"])),
        ("Batch size", _count(provenance["batch_size"])),
        ("Batches of an epoch", _count(provenance["steps"])),
        ("Model", provenance["model"]),
        ("Epochs of a training run", _count(provenance["train_epochs"])),
        ("Horizon of the verdict", None if horizon is None else f"{figures.count(horizon)} epochs"),
        ("Every single run", f"{_RUNS}, beside this report"),
    ]
    return _table("To repeat it", (".What", ".Value"), [(what, value) for what, value in rows if value is not None])


def _count(value: int | None) -> str | None:
    return None if value is None else figures.count(value)


def pipelines(body: Body) -> Table:
    """Return where own pipelines come from, and what an epoch of each is."""
    rows = [
        (
            each["name"],
            each["function"],
            each["file"] or "no file",
            (each["sha256"] or "-")[:_HASH_SHOWN],
            each["elements"],
            figures.count(each["images"]),
            figures.count(each["batches"]),
        )
        for each in body["pipelines"]
    ]
    columns = (".Pipeline", ".Function", ".File", ".Its SHA-256", ".Yields", "Images an epoch", "Batches")
    return _table("The pipelines", columns, rows)


def machine(provenance: Body) -> Table:
    """Return where it ran, and on what."""
    meter, threads = provenance["meter"], provenance["threads"]

    def chosen(count: int) -> str:
        return "as TensorFlow chooses" if count == 0 else str(count)

    carbon = NO_COUNTRY
    if meter["country"] is not None:
        carbon = f"{meter['country']}, {figures.number(meter['carbon_g_per_kwh'])} g per kWh ({meter['carbon_source']})"
    rows: list[tuple[str, str]] = [
        ("Processor", meter["cpu"] or "unknown"),
        ("Its thermal design power", "unknown to CodeCarbon" if meter["tdp_w"] is None else f"{meter['tdp_w']:g} W"),
        ("vCPUs", f"{meter['vcpus']:g}"),
        ("Memory", f"{figures.number(meter['memory_gb'])} GiB"),
        (
            "Threads",
            f"{threads['cpus']} CPUs; inside an op {chosen(threads['intra_op'])}; between ops "
            f"{chosen(threads['inter_op'])}",
        ),
        ("System", provenance["platform"]),
        ("Meter", meter["method"]),
        ("RAPL counters", ", ".join(meter["rapl"]) or "none"),
        ("GPUs", ", ".join(meter["gpus"]) or "none"),
        ("PUE", f"{meter['pue']:g}"),
        ("Carbon", carbon),
        ("Python", provenance["python"]),
        *((name, version or "not installed") for name, version in provenance["versions"].items()),
    ]
    return _table("Machine and versions", (".What", ".Value"), rows)
