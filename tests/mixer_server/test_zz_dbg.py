import socket, time, threading
import grpc
from serving import WAIT_S, serve, tiny_mixer
from services.security.config import SecurityConfig
import services.security.connection_limit as cl
import sys
sys.path.insert(0, "tests/mixer_server")

def has_ended(connection):
    try:
        while connection.recv(4096, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True

def test_dbg():
    orig = cl.ConnectionLimit._cut
    cuts = []
    def cut(self, d, h):
        r = orig(self, d, h); cuts.append((d, r, sorted(k.number for k in self._known.values() if k.host)[:3])); return r
    cl.ConnectionLimit._cut = cut
    with serve(tiny_mixer(), security=SecurityConfig(max_connections_per_client=20)) as server:
        host, port = server.addresses["grpc"].split(":")
        with grpc.insecure_channel(server.addresses["grpc"]) as channel:
            ask = channel.unary_unary("/samix.mixer.v1.MixerService/ListMixers")
            ask(b"", timeout=WAIT_S)
            opened = [socket.create_connection((host, int(port)), timeout=WAIT_S) for _ in range(100)]
            for t in range(12):
                threading.Event().wait(0.25)
                print(t, sum(has_ended(c) for c in opened), len(cuts), [i for i, c in enumerate(opened) if not has_ended(c)])
            ask(b"", timeout=WAIT_S)
            for c in opened: c.close()
    cl.ConnectionLimit._cut = orig
