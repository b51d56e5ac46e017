"""The data path in a process of its own (`calnet node --processes 2`), so that the daemon's other work and the data path run side by side.

Theory of operation. The daemon talks to its data path through `Engine` and `EngineHost` alone (engine.py). Here a `ProxyEngine` (proxy.py) takes the
engine's place in the daemon's process, and turns each call into a message; the child (child.py), this same program started anew (start.py), has the real
engine, and gives it a host that turns each of its calls into a message back. Both speak over one socket pair (stream.py, frames.py), in messages of their own
(messages.py). What belongs to the data path alone stays with the child: it opens TUN and UDP port, and writes the handshake timestamps, so that no
handshake waits for the daemon.

Keys go over the socket pair alone. The child ends when the socket does, and the kernel kills it when its parent ends; TUN and port go back with it.

Error contract. What the child can't open is raised where the daemon opens it, as if it had tried itself. A child that ends is told to the host
(`engine_ended`), and all that waits for an answer fails with UnreachableError. Where either side doesn't keep up, relayed datagrams are dropped and
counted; messages never are.
"""
