"""Whether more padding, or less, changes what the real positions give."""

from hf_accum.gradient_check.probe import Probe, compare
from hf_accum.gradient_check.report import Finding
from hf_accum.gradient_check.rows import Rows
from hf_accum.gradient_check.trace import by_position, calls_of, first_difference, kind_of

_MOST_ALONE = 4  # examples that are run without padding


def find_padding(probe: Probe, rows: Rows) -> tuple[list[Finding], dict[str, float], list[str]]:
    """The unsplit batch with more padding, and examples without; the differences, and what could not be compared."""
    if rows.cannot_pad:
        return [], {}, [f"padding: {rows.cannot_pad}"]
    differences: dict[str, float] = {}
    said: list[str] = []
    numbers: dict[str, float] = {}
    where: tuple[str, ...] = ()
    if rows.room:
        whole, longer = rows.batch(range(rows.num_examples)), rows.padded(rows.room)
        right, gradient = probe.gradient([whole]), probe.gradient([longer])
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
    else:
        said.append("more padding: the batch has as many positions as the model")
    worst = 0.0
    longest = rows.real().shape[1]
    ragged = [place for place, length in enumerate(rows.lengths) if length < longest]
    for place in ragged[:_MOST_ALONE]:
        padded, bare = rows.batch([place]), rows.alone(place)
        losses = probe.loss(padded), probe.loss(bare)
        off = abs(losses[0] - losses[1]) / (abs(losses[1]) or 1.0)
        if probe.differ(*losses) and off > worst and not numbers.get("loss padded"):
            numbers |= {"loss padded": losses[0], "loss without padding": losses[1]}
        worst = max(worst, off)
    if ragged:
        differences["single examples without padding, their losses"] = worst
    elif not rows.room:
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
