"""Whether more padding, or less, changes what the real positions give."""

from hf_accum.errors import first_line
from hf_accum.gradient_check.probe import Probe, compare
from hf_accum.gradient_check.report import Finding
from hf_accum.gradient_check.rows import Rows
from hf_accum.gradient_check.trace import by_position, calls_of, first_difference, kind_of


def find_padding(probe: Probe, rows: Rows) -> tuple[list[Finding], dict[str, float], list[str]]:
    """The unsplit batch with more padding, and examples without; the differences, and what could not be compared."""
    if rows.cannot_pad:
        return [], {}, [f"padding: {rows.cannot_pad}"]
    differences: dict[str, float] = {}
    said: list[str] = []
    numbers: dict[str, float] = {}
    where: tuple[str, ...] = ()
    whole, longer = rows.batch(range(rows.num_examples)), rows.padded(rows.room)
    gradient = None
    if rows.room:
        try:
            gradient = probe.gradient([longer])
        except Exception as error:  # of the user's loss: a value or a shape of padding that it does not know
            said.append(f"more padding: {first_line(error)}")
    else:
        said.append("more padding: the batch has as many positions as the model")
    if gradient is not None:
        right = probe.gradient([whole])
        difference = compare(gradient, right)
        differences[f"{rows.room} more positions of padding"] = difference.relative
        if not difference.relative <= probe.tolerance:
            numbers = {
                f"loss with {rows.room} more positions / without": gradient.loss / (right.loss or 1.0),
                "largest relative difference of the gradient": difference.relative,
            }
            align = by_position(rows.real(), rows.room, rows.is_left)
            calls = calls_of(probe, whole), calls_of(probe, longer)
            name = first_difference(*calls, probe.tolerance, align)
            where = () if name is None else (kind_of(probe, name),)
            where += (difference.parameter,)
        elif abs(rows.weight(longer) - rows.weight(whole)) > 1e-9 * abs(rows.weight(whole)):
            numbers = {"weight": rows.weight(whole), f"with {rows.room} more positions": rows.weight(longer)}
            where = ("weight", "")
    longest = rows.real().shape[1]
    by_length = sorted((length, place) for place, length in enumerate(rows.lengths))
    ragged = [place for length, place in by_length if length < longest]
    worst: float | None = None
    for place in {*ragged[:1], *ragged[-1:]}:
        try:
            padded, bare = (probe.gradient([batch]) for batch in (rows.batch([place]), rows.alone(place)))
        except Exception as error:  # of the user's loss, of a single example
            said.append(f"single examples without padding: {first_line(error)}")
            break
        if not padded.is_finite:  # by itself, whatever its padding
            continue
        off = compare(padded, bare)
        if not off.relative <= probe.tolerance and not numbers:
            numbers = {"loss padded": padded.loss, "loss without padding": bare.loss}
            numbers["largest relative difference of the gradient"] = off.relative
            where = (off.parameter,)
        worst = max(worst or 0.0, off.relative)
    if worst is not None:
        differences["single examples without padding"] = worst
    elif not ragged and not rows.room:
        said.append(f"less padding: all examples have {longest} positions")
    if not numbers:
        return [], differences, said
    named = f", first in {where[0]}" if len(where) > 1 else ""
    why = (
        f"padding changes what the real positions give{named}: micro-batches padded to other lengths train otherwise"
    )
    way_out = (
        "hand the mask on to all that looks beyond a position (attention, pooling, convolution), and leave padding "
        "out of the loss (labels -100); else pad all batches to one length"
    )
    return [Finding("padding", "fault", why, way_out, numbers, where)], differences, said
