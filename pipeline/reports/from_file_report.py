"""From picture files to outputs: as metrics, as a table, and whether int8 is what a faster program needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from pipeline.flows import BY_PREFIX
from pipeline.measure.latency import Interval, Passes, median_interval, ratio_interval

PARTS = ("decode", "resize", "normalize")


@dataclass(frozen=True)
class Way:
    """One loop, of so many threads and pictures at a time: the samples of the parts and of each exported file.

    Attributes:
        parts: what comes before the network, by name.
        networks, wholes: by `<runtime>/<form>`, the network alone, and everything from the files on.
        folder_ms: by the same, of a folder of `folder_files` pictures, on as many threads; of the largest batch alone.
    """

    threads: int
    batch_size: int
    parts: Mapping[str, Passes]
    networks: Mapping[str, Passes]
    wholes: Mapping[str, Passes]
    folder_ms: Mapping[str, Passes]
    folder_files: int

    @property
    def _where(self) -> str:
        return "" if (self.threads, self.batch_size) == (1, 1) else f"_t{self.threads}_b{self.batch_size}"

    @property
    def picture_ms(self) -> float:
        """What comes before the network, together."""
        return sum(median_interval(passes)[0] for passes in self.parts.values())

    def folder_ips(self, name: str) -> float | None:
        """Pictures a second of a folder."""
        passes = self.folder_ms.get(name)
        return None if passes is None else 1000 * self.folder_files / median_interval(passes)[0]

    def metrics(self) -> dict[str, float]:
        found = {f"file/{part}{self._where}_ms": median_interval(passes)[0] for part, passes in self.parts.items()}
        for name, passes in self.wholes.items():
            median, low, high = median_interval(passes)
            found[f"{name}/file{self._where}_ms"] = median
            found[f"{name}/file_ci_low{self._where}_ms"] = low
            found[f"{name}/file_ci_high{self._where}_ms"] = high
            if (pictures := self.folder_ips(name)) is not None:
                found[f"{name}/folder_t{self.threads}_ips"] = pictures
        return found

    def in_words(self) -> str | None:
        """What int8 gains of the network and of the whole way; None where one of fp32 and int8 is not there."""
        best: dict[bool, str] = {}
        for name in sorted(self.wholes, key=lambda name: -median_interval(self.wholes[name])[0]):
            best[BY_PREFIX[name.split("/")[1]].is_int8] = name
        if len(best) < 2:
            return None
        int8, fp32 = best[True], best[False]
        network, whole = (ratio_interval(of[fp32], of[int8]) for of in (self.networks, self.wholes))
        line = (
            f"{_threads(self.threads)}, batch {self.batch_size}: int8 ({int8}) makes the network {_interval(network)} "
            f"times as fast as the best fp32 ({fp32}), and the way from the file {_interval(whole)} times"
        )
        pictures, int8_ms = self.picture_ms, median_interval(self.networks[int8])[0]
        if pictures > int8_ms:
            line += (
                f"; the picture takes {pictures / int8_ms:.1f} times as long as the int8 network: smaller files or a "
                "faster decoder gain more now"
            )
        return line


def ways_table(ways: Sequence[Way], files: str, style: str) -> str:
    """A row for each way and exported file, the fastest of each loop first; `files`: what pictures they were."""
    rows = []
    for way in ways:
        parts = [f"{median_interval(way.parts[part])[0]:.2f}" for part in PARTS]
        for name in sorted(way.wholes, key=lambda name: median_interval(way.wholes[name])[0]):
            whole, pictures = median_interval(way.wholes[name]), way.folder_ips(name)
            rows.append(
                [
                    str(way.threads),
                    str(way.batch_size),
                    *name.split("/"),
                    *parts,
                    f"{median_interval(way.networks[name])[0]:.2f}",
                    f"{whole[0]:.2f}",
                    "[{:.2f}, {:.2f}]".format(*whole[1:]),
                    f"{100 * way.picture_ms / (way.picture_ms + median_interval(way.networks[name])[0]):.0f} %",
                    "–" if pictures is None else f"{pictures:.0f}",
                ]
            )
    headers = ["threads", "batch", "runtime", "form", *PARTS, "network", "from file ms", "95 % interval", "picture"]
    align = ["right", "right", "left", "left", *["right"] * 8]
    table = tabulate(rows, [*headers, "folder, images/s"], tablefmt=style, disable_numparse=True, colalign=align)
    lines = [line for way in ways if (line := way.in_words()) is not None]
    return "\n".join(
        [
            f"{table}\n",
            f"medians in milliseconds a batch, turn by turn; pictures: {files}, decoded and resized by Pillow",
            "picture: the share of what comes before the network; folder: each thread has a model of its own",
            *lines,
            "",
        ]
    )


def _interval(ratio: Interval) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
