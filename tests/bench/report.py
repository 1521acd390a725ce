"""Print the results of the benchmark as tables that are aligned and valid Markdown."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence

import calls
import data_images
import finalizing
import fleet
import removing
import tracing
import usage
import verification
from images import Comparison
from wire import Copied

from ansible_collections.renderfarm.overlay.tests.kernel.soak import Found


def environment() -> str:
    """Return the machine and the versions that the figures depend on."""
    tar = subprocess.run(("tar", "--version"), check=True, stdout=subprocess.PIPE, text=True).stdout
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"Linux {platform.release().partition('-')[0]} {platform.machine()}, {os.cpu_count()} processors,"
        f" {memory / 2**30:.0f} GiB of memory, Python {platform.python_version()}, {tar.splitlines()[0]}"
    )


class Table:
    """Hold rows of text below a title."""

    def __init__(self, title: str, *head: str) -> None:
        self._title = title
        self._rows: list[Sequence[str]] = [head]

    def add(self, *row: str) -> None:
        self._rows.append(row)

    @property
    def is_empty(self) -> bool:
        return len(self._rows) == 1

    def __str__(self) -> str:
        """Return the table as Markdown with aligned columns."""
        widths = [max(map(len, column)) for column in zip(*self._rows)]
        first, *others = (self._line(row, widths) for row in self._rows)
        rule = "|".join(("", *("-" * (width + 1) + ":" for width in widths), ""))
        return "\n".join((f"### {self._title}", "", first, rule, *others))

    @staticmethod
    def _line(row: Sequence[str], widths: Sequence[int]) -> str:
        return f"| {' | '.join(cell.rjust(width) for cell, width in zip(row, widths))} |"


class Report:
    """Collect the figures, and check those that have a bar to meet."""

    def __init__(self) -> None:
        self._compared = Table(
            "Building a directory layer, and tar -x of the same layer (medians, in seconds)",
            *(
                "files",
                "file system",
                "ours",
                "tar",
                "ratio",
                "ours, synced",
                "tar, synced",
                "ratio",
                "range",
                "on disk",
            ),
            "bar",
        )
        self._second = Table(
            "An unchanged second run of metadata_layer (medians)",
            *("files", "format", "releases", "whole process", "in the module", "bar"),
        )
        self._memory = Table("Memory of building a directory layer", "files", "peak", "bar")
        self._images = Table(
            "Building an image, and mkcomposefs --from-file alone (medians, in seconds; each ratio is the median of the rounds' ratios)",
            *("files", "", "ours", "mkcomposefs", "ratio", "range", "bar"),
        )
        self._growth = Table(
            "Growth: processor time for a file, in microseconds",
            *("files", "own", "mkcomposefs, run by us", "total", "ratio to a smaller view", "bar"),
        )
        self._last_cost: float | None = None
        self._sizes = Table(
            "Images: memory and size",
            *("files", "our peak", "bar", "peak of mkcomposefs", "image", "gzipped", "bar"),
        )
        self._stored = Table(
            "Publishing an image and one of a view in which one release has changed",
            *("files", "releases", "image", "compressed", "delta", "share", "bar", "compressing", "delta", "peak"),
        )
        self._copied = Table(
            "Installing them on a host",
            *("files", "copied", "bytes", "seconds", "processor", "peak"),
        )
        self._switches = Table("Switching a mounted view", "between", "switches", "median", "longest", "bar")
        self._usage = Table(
            "Finding the processes that use a release",
            *("files of the view", "processes", "users", "in the module", "longest", "bar", "processor"),
        )
        self._tracing = Table(
            "Tracing opens: processor time of a job in a view, with and without a listener (the least of all turns)",
            *(
                "job",
                "opens",
                "job",
                "traced job",
                "listener",
                "more",
                "bar",
                "more for each open",
                "wall time",
                "traced",
            ),
        )
        self._finalize = Table(
            "Finalizing an overlay, and chown -R -h with ls -lR (medians, in seconds)",
            *("files", "upper layer on", "ours", "without sealing", "commands", "ratio", "bar"),
            *("in the module", "second run", "share", "bar"),
        )
        self._removing = Table(
            "Removing a view, and rm -rf of the same layer (medians, in seconds)",
            *("files", "file system", "in the module", "rm", "ratio", "range"),
        )
        self._verification = Table(
            "Verifying the metadata of a layer, and find -printf with getfattr -R (medians, in seconds)",
            *("files", "file system", "in the module", "programs", "ratio", "range", "bar"),
        )
        self._data_images = Table(
            "Building a data image and mkfs.erofs alone; installing it, and cp with sha256sum (medians, in seconds)",
            *("", "files", "content", "image", "ours", "programs", "ratio", "range", "bar"),
        )
        self._calls = Table("One ad-hoc call of each module", "module", "wall time", "sent to the host")
        self._soak = Table(
            "Soaking views: several processes at once, killed at random, under readers",
            *(
                "runs",
                "with a change",
                "killed",
                "overtaken",
                "opens",
                "failed",
                "mounts at each view",
                "left behind",
                "errors",
                "bar",
            ),
        )
        self._soak_said: list[str] = []
        self._fleet = Table(
            "A fleet with nothing to do: this version, and the one whose deployment ran roles for each view (medians)",
            *("hosts", "views", "version", "tasks for each host", "bar", "events for each host", "bar"),
            *("events", "results", "wall time", "processor time"),
        )
        self._fleet_ratios = Table(
            "How many times less time this version needs (medians of the rounds' ratios)",
            *("hosts", "views", "wall time", "range", "bar", "processor time", "range"),
        )
        self._fleet_growth = Table(
            "Growth with hosts and views (nothing to do)",
            *("hosts", "views", "wall time", "processor time", "for each host", "tasks for each host", "bar"),
            *("events for each host", "sent to a host", "main process", "controller"),
        )
        self._batches = Table(
            "A rollout in batches while releases are published",
            *("hosts", "batch", "published meanwhile", "wall time", "generations of each view", "bar"),
        )
        self._many = Table(
            "The largest fleet",
            *("hosts", "run", "wall time", "processor time", "tasks for each host", "events", "results"),
            *("main process", "controller"),
        )
        self._speed = Table("For information", "what", "files", "seconds", "entries per second")
        self._missed = 0

    def add_comparison(
        self,
        files: int,
        system: str,
        ours: Sequence[float],
        tar: Sequence[float],
        rounds: Sequence[float],
        on_disk: int,
        bar: float | None,
    ) -> None:
        """Add a row. ``ours`` and ``tar`` are seconds without and with syncing; ``rounds`` are ratios."""
        ratios = [mine / theirs for mine, theirs in zip(ours, tar)]
        cells = [
            cell
            for mine, theirs, ratio in zip(ours, tar, ratios)
            for cell in (f"{mine:.2f}", f"{theirs:.2f}", f"{ratio:.2f}")
        ]
        spread = f"{min(rounds):.2f} - {max(rounds):.2f}"
        verdict = self._bar(max(ratios), bar, "<= {:.2f}")
        self._compared.add(f"{files:,}", system, *cells, spread, _megabytes(on_disk), verdict)

    def add_second_run(self, files: int, form: str, releases: int, whole: float, inside: float, bar: float) -> None:
        cells = (f"{files:,}", form, str(releases), f"{whole:.2f} s", f"{inside:.3f} s")
        self._second.add(*cells, self._bar(inside, bar, "< {} s"))

    def add_memory(self, files: int, peak: int, bar: int | None) -> None:
        self._memory.add(f"{files:,}", _megabytes(peak), self._bar(peak / 1e6, bar, "< {} MB"))

    def add_image(self, found: Comparison, ratio_bar: float, growth_bar: float) -> None:
        whats = (("written", "written"), ("synced", "synced"), ("processor", "processor time"))
        for what, shown in whats:
            ratios = found.ratios(what)
            ratio = statistics.median(ratios)
            cells = (f"{found.ours_median(what):.3f}", f"{found.alone_median(what):.3f}", f"{ratio:.2f}")
            spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
            self._images.add(f"{found.files:,}", shown, *cells, spread, self._bar(ratio, ratio_bar, "<= {:.2f}"))
        own, together = (found.ours_median(what) / found.files * 1e6 for what in ("own_processor", "processor"))
        growth = together / self._last_cost if self._last_cost else None
        self._last_cost = together
        self._growth.add(
            f"{found.files:,}",
            *(f"{cost:.2f}" for cost in (own, together - own, together)),
            f"{growth:.2f}" if growth else "",
            self._bar(growth, growth_bar, "< {:.2f}") if growth else "",
        )

    def add_image_size(self, found: Comparison, peak_bar: int | None, gzipped_bar: int | None) -> None:
        peak = found.ours_median("peak")
        self._sizes.add(
            f"{found.files:,}",
            _megabytes(peak),
            self._bar(peak / 1e6, peak_bar, "< {} MB"),
            _megabytes(found.alone_median("peak")),
            f"{found.size / 1e6:.1f} MB",
            f"{found.gzipped / 1e6:.1f} MB",
            self._bar(found.gzipped / 1e6, gzipped_bar, "< {} MB"),
        )

    def add_wire(self, found: Copied, bar: float | None) -> None:
        changed = found.changed
        share = changed["delta"] / changed["packed"]
        self._stored.add(
            *(f"{found.files:,}", f"{found.releases}", f"{changed['bytes'] / 1e6:.1f} MB"),
            *(_kilobytes(changed["packed"]), _kilobytes(changed["delta"]), f"{share:.4f}"),
            self._bar(share, bar, "< {}"),
            *(f"{changed['packing']:.2f} s", f"{changed['deltas']:.2f} s", _megabytes(changed["peak_bytes"])),
        )
        for one in (found.whole, found.delta):
            self._copied.add(
                *(f"{found.files:,}", one["installed_from"], _kilobytes(one["bytes_copied"])),
                *(f"{one['seconds']:.2f} s", f"{one['processor']:.2f} s", _megabytes(one["peak_bytes"])),
            )

    def add_switches(self, what: str, count: int, median: float, longest: float, bar: float) -> None:
        cells = (what, str(count), f"{median * 1e3:.1f} ms", f"{longest * 1e3:.1f} ms")
        self._switches.add(*cells, self._bar(median, bar, "< {} s"))

    def add_usage(self, found: usage.Found, bar: float) -> None:
        median = statistics.median(found.inside)
        cells = (f"{found.files:,}", str(found.processes), str(found.users))
        times = (f"{median:.2f} s", f"{max(found.inside):.2f} s")
        processor = f"{statistics.median(found.processor):.2f} s"
        self._usage.add(*cells, *times, self._bar(median, bar, "< {} s"), processor)

    def add_tracing(self, found: tracing.TracedJob, bar: float | None) -> None:
        plain, traced = (found.best(traced) for traced in (False, True))
        more = traced.own + traced.listener - plain.own
        share = more / plain.own
        self._tracing.add(
            *(found.name, f"{found.opens:,}", f"{plain.own:.3f} s", f"{traced.own:.3f} s", f"{traced.listener:.3f} s"),
            *(f"{share:.1%}", self._bar(share, bar, "< {:.0%}"), f"{more / found.opens * 1e6:.1f} us"),
            *(f"{plain.wall:.3f} s", f"{traced.wall:.3f} s"),
        )

    def add_finalize(self, found: finalizing.Comparison, ratio_bar: float | None, again_bar: float | None) -> None:
        ours, unsealed, commands, inside, again = map(
            statistics.median, (found.ours, found.unsealed, found.commands, found.inside, found.again)
        )
        verdict = self._bar(ours / commands, ratio_bar, "<= {:.2f}")
        share = self._bar(again / inside, again_bar, "<= {:.2f}")
        self._finalize.add(
            *(f"{found.files:,}", found.system, f"{ours:.2f}", f"{unsealed:.2f}", f"{commands:.2f}"),
            *(f"{ours / commands:.2f}", verdict, f"{inside:.2f}", f"{again:.4f}", f"{again / inside:.4f}", share),
        )

    def add_removing(self, found: removing.Comparison) -> None:
        ratios = [mine / theirs for mine, theirs in zip(found.ours, found.rm)]
        medians = (statistics.median(found.ours), statistics.median(found.rm))
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        cells = (*(f"{seconds:.2f}" for seconds in medians), f"{statistics.median(ratios):.2f}", spread)
        self._removing.add(f"{found.files:,}", found.system, *cells)

    def add_verification(self, found: verification.Comparison, bar: float | None) -> None:
        ratio = statistics.median(found.ratios())
        spread = f"{min(found.ratios()):.2f} - {max(found.ratios()):.2f}"
        medians = (f"{statistics.median(seconds):.2f}" for seconds in (found.ours, found.commands))
        verdict = self._bar(ratio, bar, "<= {:.2f}")
        self._verification.add(f"{found.files:,}", found.system, *medians, f"{ratio:.2f}", spread, verdict)

    def add_data_images(self, found: data_images.Comparison, bar: float) -> None:
        ratio = statistics.median(found.ratios())
        spread = f"{min(found.ratios()):.2f} - {max(found.ratios()):.2f}"
        medians = (f"{statistics.median(seconds):.2f}" for seconds in (found.ours, found.alone))
        sizes = (f"{found.files:,}", _megabytes(found.content), _megabytes(found.image))
        self._data_images.add(found.what, *sizes, *medians, f"{ratio:.2f}", spread, self._bar(ratio, bar, "<= {:.2f}"))

    def add_calls(self, found: Sequence[calls.Call]) -> None:
        for call in found:
            self._calls.add(call.module, f"{call.seconds:.2f} s", f"{call.payload:,} bytes")

    def add_soak(self, found: Found) -> None:
        mounted = ", ".join(map(str, sorted(set(found.mounted.values()))))
        self._soak_said = [*found.failed_opens[:10], *found.left[:10], *found.errors[:10]]
        bad = len(found.failed_opens) + len(found.left) + len(found.errors) + (mounted != "1")
        self._soak.add(
            *(
                f"{found.runs.total():,}",
                f"{found.changed:,}",
                f"{found.killed:,}",
                f"{found.refused.total():,}",
                f"{found.opens:,}",
            ),
            *(str(len(found.failed_opens)), mounted, str(len(found.left)), str(len(found.errors))),
            self._bar(bad, 0, "<= {:.0f}"),
        )

    def add_fleet(
        self, found: fleet.Comparison, tasks_bar: int, events_bar: int | None, ratio_bar: float | None
    ) -> None:
        for version, runs, bars in (
            ("now", found.ours, (tasks_bar, events_bar)),
            ("before", found.before, (None, None)),
        ):
            run = runs[0]
            events = run.all_events / run.hosts
            self._fleet.add(
                *(str(found.hosts), str(found.views), version, str(run.tasks), self._bar(run.tasks, bars[0], "<= {}")),
                *(
                    f"{events:.1f}",
                    self._bar(events, bars[1], "<= {}"),
                    f"{run.all_events:,}",
                    _kilobytes(run.result_bytes),
                ),
                *(_seconds(statistics.median(getattr(one, what) for one in runs)) for what in ("seconds", "processor")),
            )
        cells = []
        for what, bar in (("seconds", ratio_bar), ("processor", None)):
            ratios = found.ratios(what)
            cells += [f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f} - {max(ratios):.1f}"]
            if what == "seconds":
                cells.append(self._bar(statistics.median(ratios), bar, ">= {:g}"))
        self._fleet_ratios.add(str(found.hosts), str(found.views), *cells)

    def add_fleet_growth(self, found: fleet.Growth, tasks_bar: int) -> None:
        run = found.run
        self._fleet_growth.add(
            *(str(run.hosts), str(found.views), _seconds(run.seconds), _seconds(run.processor)),
            *(f"{run.processor / run.hosts:.2f} s", str(run.tasks), self._bar(run.tasks, tasks_bar, "<= {}")),
            *(f"{run.all_events / run.hosts:.1f}", f"{found.payload:,} bytes"),
            *(_megabytes(run.main_peak), _megabytes(run.controller_peak)),
        )

    def add_batches(self, found: fleet.Batches) -> None:
        shown = ", ".join(map(str, sorted(set(found.generations))))
        self._batches.add(
            *(str(found.hosts), str(found.batch), str(found.published), _seconds(found.run.seconds), shown),
            self._bar(max(found.generations), 1, "<= {}"),
        )

    def add_many(self, what: str, run: fleet.Pass) -> None:
        self._many.add(
            *(f"{run.hosts:,}", what, _seconds(run.seconds), _seconds(run.processor), str(run.tasks)),
            *(f"{run.all_events:,}", _kilobytes(run.result_bytes), _megabytes(run.main_peak)),
            _megabytes(run.controller_peak),
        )

    def add_speed(self, what: str, files: int, seconds: float, entries: int) -> None:
        self._speed.add(what, f"{files:,}", f"{seconds:.2f}", f"{entries / seconds:,.0f}")

    def _bar(self, found: float, bar: float | None, wanted: str) -> str:
        """Compare a figure with its bar, and count it if it does not meet it. ``wanted`` says what is better: <=, >= or <."""
        if bar is None:
            return ""
        met = found >= bar if ">=" in wanted else found <= bar if "<=" in wanted else found < bar
        self._missed += not met
        return f"{wanted.format(bar)}: {'met' if met else 'NOT MET'}"

    def __str__(self) -> str:
        verdict = f"Bars not met: {self._missed}." if self._missed else "All bars are met."
        tables = (
            *(self._compared, self._memory, self._images, self._growth, self._sizes),
            *(self._stored, self._copied, self._second, self._switches, self._usage, self._tracing),
            *(self._finalize, self._removing, self._verification, self._data_images, self._calls, self._soak),
            *(self._fleet, self._fleet_ratios, self._fleet_growth, self._batches, self._many, self._speed),
        )
        verdict = "\n".join((*self._soak_said, verdict))
        return "\n\n".join((*(str(table) for table in tables if not table.is_empty), verdict))


def _seconds(count: float) -> str:
    return f"{count:.1f} s"


def _kilobytes(count: float) -> str:
    return f"{count / 1e3:,.0f} kB"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.0f} MB"
