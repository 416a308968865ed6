"""A page of the viewer without a browser: sends cameras, takes pictures."""

from __future__ import annotations

import io
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Vector = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Arrival:
    """A picture as it came: seconds of `time.perf_counter`, [height, width, 3] uint8, depth?"""

    seconds: float
    data: bytes
    has_depth: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        with Image.open(io.BytesIO(self.data)) as image:
            return image.size

    @property
    def colors(self) -> np.ndarray:
        """[height, width, 3] uint8."""
        with Image.open(io.BytesIO(self.data)) as image:
            return np.asarray(image.convert("RGB"))


class PageClient:
    """Speaks with the viewer's server as its page does. A context manager.

    Args:
        size: of the canvas, width and height in pixels.
    """

    def __init__(self, url: str, size: tuple[int, int] = (900, 700)) -> None:
        self.url, self.size = url, size
        self.pictures: queue.Queue[Arrival] = queue.Queue()
        self.kinds: set[str] = set()  # of messages that came

    def __enter__(self) -> PageClient:
        import viser
        from websockets.sync.client import connect
        from websockets.typing import Subprotocol

        address = self.url.replace("http://", "ws://")
        protocol = Subprotocol(f"viser-v{viser.__version__}")
        self._socket = connect(address, subprotocols=[protocol], max_size=2**28)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._thread.join(10.0)

    def vanish(self) -> None:
        """Break the connection without a word."""
        self._socket.socket.close()

    def look(self, position: Vector, wxyz: tuple[float, float, float, float], fov: float) -> None:
        """Send a camera: scene space, OpenCV."""
        from viser._messages import ViewerCameraMessage

        width, height = self.size
        ahead: Vector = (0.0, 0.0, 0.0)
        message = ViewerCameraMessage(
            wxyz, position, fov, 0.01, 1000.0, height, width, ahead, (0.0, 0.0, 1.0)
        )
        self.send(message)

    def send(self, message: Any) -> None:
        import msgspec

        self._socket.send(msgspec.msgpack.encode(message.as_serializable_dict()))

    def _listen(self) -> None:
        import msgspec
        import zstandard
        from websockets.exceptions import ConnectionClosed

        unpack = zstandard.ZstdDecompressor()
        while True:
            try:
                frame = self._socket.recv()
            except (ConnectionClosed, OSError):
                return
            assert isinstance(frame, bytes)
            length, packed = (int.from_bytes(frame[i : i + 8], "little") for i in (0, 8))
            inner = unpack.decompress(frame[16 : 16 + packed], max_output_size=length)
            table = msgspec.msgpack.decode(inner)
            at, buffers = -(-(16 + packed) // 8) * 8, []
            for n in table["binaryBufferLengths"]:
                buffers.append(frame[at : at + n])
                at = -(-(at + n) // 8) * 8
            for message in table["messages"]:
                self.kinds.add(message["type"])
                if message["type"] == "BackgroundImageMessage" and message["rgb_data"] is not None:
                    depth = message["depth_data"]
                    data = _bytes(message["rgb_data"], buffers)
                    arrival = Arrival(time.perf_counter(), data, depth is not None)
                    self.pictures.put(arrival)


def _bytes(value: Any, buffers: list[bytes]) -> bytes:
    """What a field of a message holds, itself or in a buffer behind the message."""
    return value if isinstance(value, bytes) else buffers[value["__binary_index"]]
