"""Classes mapped by name: a teacher's order of classes may differ from that of the labels."""

import logging
from collections.abc import Sequence

from tgeokd.utils.errors import InputError, unknown_name

logger = logging.getLogger(__name__)

SHOWN = 10  # names shown


def order_by_name(given: Sequence[str], wanted: Sequence[str], what: str) -> list[int] | None:
    """The places in ``given`` of the names in ``wanted``; the order in use is logged.

    Args:
        given: names of the teacher's classes, in its order; none where it has no names.
        wanted: names of the classes of the labels, in the order of the class indices; none where they have no names.
        what: the subject of messages.

    Returns:
        One place for each class; None where a side has no names, so that the order is taken to be the same.

    Raises:
        InputError: for names that are not the same on both sides.
    """
    if not given or not wanted:
        if wanted:
            logger.info("%s: no class names, taken to be in the order of the labels: %s", what, _listed(wanted))
        return None
    for name in given:
        if given.count(name) > 1:
            raise InputError(f"{what}: two classes have the name {name!r}")
        if name not in wanted:
            raise InputError(f"{what}: {unknown_name('class', name, wanted)}")
    for name in wanted:
        if name not in given:
            raise InputError(f"{what}: there is no class {name!r} among its {len(given)} classes ({_listed(given)})")
    if list(given) == list(wanted):
        logger.info("%s: the classes are in the order of the labels: %s", what, _listed(wanted))
    else:
        logger.warning("%s: the classes are put from the order %s into %s", what, _listed(given), _listed(wanted))
    return [given.index(name) for name in wanted]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
