"""The Python whose variables live between cells."""

import _signal as signal  # type: ignore[import-not-found]  # what is around it brings enum: a megabyte a process
import binascii
import errno
import os
import sys
import time

from mortice.sandbox.guest.wire import dumps, loads


class Interpreter:
    """The Python whose variables live between cells; runs as the guest's user. 3: requests, 4: answers."""

    def __init__(self):
        module = type(sys)
        self.main = module("__main__")
        self.main.__dict__["__builtins__"] = __builtins__
        sys.modules["__main__"] = self.main
        guest = module("mortice_guest", "Hooks of the sandbox around this interpreter.")
        self.hooks = []
        guest.on_restore = self.hooks.append
        guest.generation = ""
        self.guest = sys.modules["mortice_guest"] = guest
        sys.argv = [""]
        version = "python%d.%d" % sys.version_info[:2]
        sys.path[:0] = ["", "/home/user/.local/lib/%s/site-packages" % version]
        sys.path += ["/usr/local/lib/%s/dist-packages" % version, "/usr/lib/python3/dist-packages"]
        sys.stdin = open(0, closefd=False)
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        self.count = 0

    def run(self):
        buffer = bytearray()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            end = buffer.find(b"\n")
            if end < 0:
                data = os.read(3, 65536)
                if not data:
                    return
                buffer += data
                continue
            request = loads(buffer[:end])
            del buffer[: end + 1]
            if request["op"] == "renew":
                self.renew(request)
                write_all(4, b'{"op": "renewed"}\n')
            else:
                write_all(4, dumps(self.cell(request)).encode() + b"\n")

    def cell(self, request):
        import _ast

        self.count += 1
        name = "<cell %d>" % self.count
        code = request["code"]
        answer = {"op": "cell", "id": request["id"]}
        before = time.process_time()
        names = self.main.__dict__
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                tree = compile(code, name, "exec", _ast.PyCF_ONLY_AST)
                last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
                exec(compile(tree, name, "exec"), names)
                if last is not None:
                    value = eval(compile(_ast.Expression(last.value), name, "eval"), names)
                    if value is not None:
                        names["_"] = value
                        answer["value"] = repr(value)
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        except SystemExit as error:
            if error.code not in (None, 0):
                answer["error"] = {"type": "SystemExit", "message": str(error.code), "traceback": ""}
        except BaseException as error:
            answer["error"] = self.describe(error, name, code)
            answer["cause"] = (
                "MemoryError"
                if isinstance(error, MemoryError)
                else errno.errorcode.get(error.errno)
                if isinstance(error, OSError)
                else "EAGAIN"
                if "can't start new thread" in str(error)
                else None
            )
            del error
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass
        answer["cpu"] = time.process_time() - before
        return answer

    def describe(self, error, name, code):
        try:
            import linecache
            import traceback

            linecache.cache[name] = (len(code), None, code.splitlines(True), name)
            frames = error.__traceback__
            while frames is not None and frames.tb_frame.f_code.co_filename != name:
                frames = frames.tb_next
            text = "".join(traceback.format_exception(type(error), error, frames, chain=True))
            return {"type": type(error).__name__, "message": str(error)[:8192], "traceback": text[-16384:]}
        except BaseException as second:
            return {
                "type": type(error).__name__,
                "message": "(%s while it was described)" % type(second).__name__,
                "traceback": "",
            }

    def renew(self, request):
        """A clone must not draw what its siblings draw."""
        seed = binascii.a2b_base64(request["seed"])
        mods = sys.modules
        if "random" in mods:
            mods["random"].seed(seed)
        if "numpy" in mods:
            try:
                mods["numpy"].random.seed(list(seed[:32]))
            except Exception:
                pass
        if "ssl" in mods:
            mods["ssl"].RAND_add(seed, float(len(seed)))
        if "tempfile" in mods:
            mods["tempfile"]._name_sequence = None
        if "uuid" in mods:
            mods["uuid"]._last_timestamp = None
            mods["uuid"]._node = None
        self.guest.generation = request["generation"]
        for hook in list(self.hooks):
            try:
                hook(request["generation"])
            except Exception as error:
                print("on_restore hook failed: %r" % error, file=sys.stderr)


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
