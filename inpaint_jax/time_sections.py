"""Sections of a run's page about time: throughput, and what each start of the run came to."""

import datetime
import html

from inpaint_jax import curves, pages, starts

TIMING_LINES = 10
START_LINES = 40


def throughput(run: dict) -> str:
    """Sums up the timing rows in at most `TIMING_LINES` stretches."""
    keys = ("step", "seconds", "images", "data_wait_s")
    rows = [row for row in run["timing"] if all(curves.is_number(row.get(key)) for key in keys)]
    if not rows:
        return ""
    size = -(-len(rows) // TIMING_LINES)
    stretches = [rows[start : start + size] for start in range(0, len(rows), size)]
    table = []
    for part in (*stretches, rows):
        seconds, images, wait = (sum(row[key] for row in part) for key in keys[1:])
        label = f"to step {part[-1]['step']:,}" if part is not rows else "all"
        per_second, share = (images / seconds, wait / seconds) if seconds > 0 else (0.0, 0.0)
        table.append([label, f"{seconds:,.1f}", f"{images:,}", f"{per_second:,.1f}", f"{wait:,.2f}", f"{share:.1%}"])
    head = ["stretch", "seconds", "images", "images per second", "waited for data (s)", "share of the time"]
    note = "Seconds hold validation and checkpoints too, the first stretch also compilation."
    return f'{pages.table(head, table, chosen=[len(table) - 1])}<p class="note">{note}</p>\n'


def spot_ledger(run: dict) -> str:
    """Returns the ledger of a run that was started several times; nothing for one that was started once."""
    entries = run["starts"]
    if len(entries) < 2:
        return ""
    sums, each = starts.ledger(entries), starts.shares(entries)
    alive = sums["alive_s"]

    def part(seconds: float) -> str:
        return f"{pages.duration_text(seconds)}, {seconds / alive:.1%}" if alive > 0 else "0 s"

    pairs = [
        ("Survived", starts.survived_text(sums["survived"])),
        ("At work", f"{pages.duration_text(alive)} in {len(entries)} starts"),
        ("Useful", f"{sums['useful']:.1%}: training that stayed, and a test that came to its end"),
        ("Lost", f"{part(sums['lost_s'])}: starting again, steps trained twice, tests begun anew"),
        ("Training that stayed", part(sums["kept_s"])),
        ("Trained twice", f"{part(sums['twice_s'])}: {sums['twice']:,} steps after the last saved state"),
        ("Until first steps", f"{part(sums['startup_s'])}: starting, reading, restoring, compiling"),
        ("Waiting for saves", part(sums["saves_s"])),
        ("Tests", part(sums["test_s"])),
        ("Away between starts", pages.duration_text(sums["away_s"])),
    ]
    names = ("startup_s", "saves_s", "kept_s", "twice_s", "test_s")
    rows = []
    for number, (entry, one) in enumerate(zip(entries, each, strict=True), 1):
        began = datetime.datetime.fromtimestamp(entry["began"], datetime.UTC).isoformat(" ", "seconds")
        ended = entry["ended"] or ("killed" if number < len(entries) else "not ended")
        steps = ["-" if entry[name] is None else f"{entry[name]:,}" for name in ("from_step", "step")]
        cells = [f"{number}", began.removesuffix("+00:00"), html.escape(ended), f"{entry['devices']}", *steps]
        rows.append([*cells, f"{one['twice']:,}", *(f"{one[name]:,.1f}" for name in names)])
    shown = f" The last {START_LINES} of {len(rows)} starts." if len(rows) > START_LINES else ""
    head = ["start", "began (UTC)", "end", "devices", "from step", "to step", "of them twice"]
    head += ["until the first step (s)", "saves (s)", "training that stayed (s)", "trained twice (s)", "test (s)"]
    return (
        f"{pages.pairs(pairs)}{pages.table(head, rows[-START_LINES:], texts=3)}"
        f'<p class="note">A process writes down every {starts.SIGN_SECONDS:g} s how far it is: what a killed one did '
        "after the last time counts as away, and so does one that was killed before it had begun to read the data of "
        f"a run. Seconds of training are divided between steps by their number.{shown}</p>\n"
    )
