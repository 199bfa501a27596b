"""What is put on somebody's object: all of it or nothing, also where an interruption comes between two lines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack


def to_its_end(function: Callable[[], None]) -> None:
    """Call ``function``, and once more if that is broken off; what broke it off comes out then.

    Args:
        function: makes up for what an earlier call has left out, and does nothing else.
    """
    try:
        function()
    except BaseException:
        function()
        raise


class PutOn:
    """Parts that are put on somebody's object, and taken off again."""

    def __init__(self) -> None:
        self._take_offs: tuple[Callable[[], None], ...] = ()

    def put_on(self, *parts: tuple[Callable[[], None], Callable[[], None]]) -> None:
        """Put all on; where one fails or is broken off, none stays on.

        Args:
            parts: pairs of a function that puts a part on, and one that takes it off. That one does nothing where the part is
                not on, and finishes what was put on, or taken off, by half. It is kept until then; the first one is not.
        """
        self._take_offs = tuple([take_off for _, take_off in parts])
        try:
            for put_on, _ in parts:
                put_on()
        except BaseException:
            self.take_off()
            raise

    def take_off(self) -> None:
        """Take all off, the last one first; one that fails keeps none of the others on. Calling it again does nothing."""
        to_its_end(self._take_off)

    def _take_off(self) -> None:
        with ExitStack() as every_one:
            for take_off in self._take_offs:
                every_one.callback(take_off)
        self._take_offs = ()
