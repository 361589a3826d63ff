"""Most frames that videos can give, without decoding them: told before a long encoding, where it is cheap.

A file gives no more frames than it has packets of video, whatever it says of itself: cut files and lists of edits make
them fewer. Packets are only read until there are as many as are asked for.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from latte import storage
from latte.data.entries import CatalogEntry
from latte.video.decoder_process import DecodeTask
from latte.video.decoders import Decoder, End, Limits, decode_one
from latte.video.sources import VideoSource

# All of it together; a dataset that takes longer is told what it lacks once it is encoded.
_LIMIT_S = 20.0
_DOWNLOAD_BYTES = 256 << 20


@contextlib.contextmanager
def counter(most: int) -> Iterator[Callable[[CatalogEntry], int | None]]:
    """A function from a video to the most frames that it can give, `most` where they are more.

    It gives 0 for a file that is no video, and None where it cannot be said with certainty, in 20 seconds in all and
    256 MB of downloads.

    Args:
        most: frames that it counts to.
    """
    left_s, left_bytes, started = _LIMIT_S, _DOWNLOAD_BYTES, False
    with Decoder(Limits(decode_limit_s=_LIMIT_S)) as decoder:

        def count(entry: CatalogEntry) -> int | None:
            nonlocal left_s, left_bytes, started
            left_bytes -= entry.bytes if storage.path(entry.uri) is None else 0
            if left_bytes < 0 or left_s < 0:
                return None
            began = time.monotonic()
            end = list(decode_one(decoder, 0, VideoSource(entry.uri), DecodeTask("", 1, count=most, only_count=True)))[
                -1
            ]
            if started:  # a busy machine may take long to start the process
                left_s -= time.monotonic() - began
            started = True
            return end.num_frames if isinstance(end, End) and end.reject is None else None

        yield count
