"""What listens sends each piece of an answer at once: a body that waits until the client has
confirmed the headers comes 40 ms late, in every request.
"""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from hubkit.conversation import Message
from hubkit.environment.server import _listening
from hubkit.local_engine.serve import _bind
from hubkit.local_engine.settings import Listen
from hubkit.local_hub.server import listen
from hubkit.serving.callable_server import served_callable


def waits_for_confirmation(connection: socket.socket) -> bool:
    return not connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def hub() -> socket.socket:
    return listen("127.0.0.1", 0, None)


def engine() -> socket.socket:
    return _bind(Listen("127.0.0.1", 0, "base"))


@contextmanager
def environment() -> Iterator[socket.socket]:
    with _listening(0) as listener:
        yield listener


@pytest.mark.parametrize("opened", [hub, engine, environment])
def test_connections_of_our_servers_send_at_once(
    opened: Callable[[], socket.socket],
) -> None:
    with opened() as listener:
        listener.listen()
        with closing(socket.create_connection(listener.getsockname())):
            accepted, _ = listener.accept()
            with accepted:
                assert not waits_for_confirmation(accepted)


def test_a_function_that_is_served_answers_at_once() -> None:
    waiting: list[bool] = []

    def agent(messages: list[Message]) -> str:
        for number in range(3, 1024):
            try:
                copy = socket.socket(fileno=os.dup(number))
            except OSError:
                continue  # closed, or no socket
            with copy:
                try:
                    copy.getpeername()
                    is_ours = copy.getsockname()[1] == port
                except (OSError, IndexError):
                    continue  # not connected, or not over TCP
                if is_ours:
                    waiting.append(waits_for_confirmation(copy))
        return "Yes."

    with served_callable(agent) as model:
        port = int(model.urls[0].rpartition(":")[2])
        body = json.dumps({"messages": [{"role": "user", "content": "Now?"}]}).encode()
        request = urllib.request.Request(
            f"{model.urls[0]}/v1/chat/completions",
            data=body,
            headers={"Authorization": f"Bearer {model.token}"},
        )
        urllib.request.urlopen(request, timeout=240).close()
    assert waiting == [False]
