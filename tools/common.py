# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tools share: messages, logged commands with progress, the cache."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LOGS = BUILD / "logs"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or
             Path.home() / ".cache").absolute() / "qemu-smmuv3-accel"


def say(text):
    """A message for the reader; stdout is left to results."""
    print(text, file=sys.stderr, flush=True)


def die(text, fix=None):
    """End with one clear line; @fix is the command that mends it."""
    say(f"error: {text}" + (f"; run: {fix}" if fix else ""))
    sys.exit(1)


def main(function):
    """Run a tool's main function; what a user can cause is one line.

    To end it by a signal ends what it has started, and removes what is half
    done, as an error does.
    """
    os.umask(0o022)     # for what other users read in a clean root
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda n, _: sys.exit(128 + n))
    try:
        sys.exit(function(sys.argv[1:]))
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            die(f"disk full while writing {e.filename or 'a file'}",
                "df -h . # and make room")
        if (e.errno in (errno.EACCES, errno.EPERM) and e.filename and
                Path(os.fsdecode(e.filename)).is_relative_to(BUILD)):
            die(f"{e.strerror}: {e.filename}, maybe root's since a run as root",
                f'sudo chown -R "$(id -un)" {shlex.quote(str(BUILD))}')
        if e.filename and e.errno in (errno.EACCES, errno.EPERM, errno.EROFS,
                                      errno.ENOENT):
            die(f"{e.strerror}: {e.filename}")
        raise


# Time and progress

def span(seconds):
    """Seconds as 45s, 3m05s or 1h02m."""
    s = int(seconds + 0.5)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02}s"
    return f"{s // 3600}h{s // 60 % 60:02}m"


class Progress:
    """How far a long step is: one updating line on a terminal, else a line
    every 30 seconds or 10 %."""

    def __init__(self, what):
        self.what = what
        self.start = self.shown = time.monotonic()
        self.tenth = 0
        self.tty = sys.stderr.isatty()
        self.open_line = False

    def elapsed(self):
        return time.monotonic() - self.start

    def update(self, fraction=None, detail=""):
        now = time.monotonic()
        tenth = int((fraction or 0) * 10)
        waited = now - self.shown
        if self.tty:
            due = waited > 0.2
        else:
            due = waited > 30 or waited > 5 and tenth > self.tenth
        if not due:
            return
        self.shown, self.tenth = now, max(tenth, self.tenth)
        text = f"{self.what}: "
        if fraction:
            left = self.elapsed() * (1 - fraction) / fraction
            text += f"{int(fraction * 100)} %, {span(left)} left"
        else:
            text += f"running for {span(self.elapsed())}"
        if detail:
            text += f" ({detail})"
        if self.tty:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", file=sys.stderr,
                  flush=True)
            self.open_line = True
        else:
            say(f"  {text}")

    def clear(self):
        if self.open_line:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.open_line = False


def ninja_progress(line):
    """(fraction, detail) from a "[n/N] ..." line, else None."""
    m = re.match(r"\[(\d+)/(\d+)\] (\S.*)?", line)
    if m and int(m[2]):
        return int(m[1]) / int(m[2]), f"{m[1]}/{m[2]}"
    return None


def run_logged(name, command, *, what=None, cwd=None, env=None,
               progress=ninja_progress, append=False, check=True,
               quiet=False):
    """Run @command with its output in build/logs/NAME.log.

    @progress maps an output line to (fraction, detail) or None. On failure
    the log and its last lines are shown and the program ends, unless @check
    is false; then the exit status is returned. @quiet: success says nothing.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    what = what or name
    show = Progress(what)
    command = [str(c) for c in command]
    with open(log, "ab" if append else "wb", buffering=0) as out:
        out.write(f"$ {shlex.join(command)}\n".encode())
        try:
            child = subprocess.Popen(command, cwd=cwd, env=env,
                                     stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT)
        except FileNotFoundError as e:
            die(f"{what}: {e.filename} is not there", "make deps")
        try:
            _follow(child, out, show, progress)
            status = child.wait()
        except BaseException:
            with contextlib.suppress(PermissionError):  # it is sudo
                child.terminate()
            child.wait()
            raise
        finally:
            show.clear()
    if status and check:
        tail = log.read_bytes().decode(errors="replace").splitlines()[-15:]
        for line in tail:
            say(f"  | {line[:300]}")
        die(f"{what} failed after {span(show.elapsed())}, see {log}")
    if not status and not quiet:
        say(f"{what}: done in {span(show.elapsed())}")
    return status


def _follow(child, out, show, progress):
    """Copy @child's output to @out line by line, reporting progress."""
    import selectors
    with selectors.DefaultSelector() as sel:
        sel.register(child.stdout, selectors.EVENT_READ)
        rest, last = b"", (None, "")
        while True:
            if sel.select(timeout=1):
                data = os.read(child.stdout.fileno(), 65536)
                if not data:
                    return
                out.write(data)
                *lines, rest = re.split(rb"[\r\n]+", rest + data)
                for line in lines:
                    found = progress and progress(line.decode(errors="replace"))
                    last = found or last
            show.update(*last)


def output(command, **kw):
    """The stdout of a short command, stripped; raises on failure."""
    return subprocess.run([str(c) for c in command], check=True,
                          stdout=subprocess.PIPE, text=True,
                          **kw).stdout.strip()


# Files

def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def write_file(path, data):
    """Write whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        tmp.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def need_space(folder, mib):
    """Refuse a step that the disk cannot hold."""
    folder = Path(folder)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free >> 20
    if free < mib:
        die(f"{mib} MiB are needed in {folder}, {free} MiB are free",
            f"df -h {shlex.quote(str(folder))} # and make room")


@contextlib.contextmanager
def lock(path, what):
    """Hold a file lock; says so when another run has it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that makes {what}")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


# Cache entries

def cache_key(*inputs):
    """A key of all @inputs: strings, bytes, or Paths (their content)."""
    h = hashlib.sha256()
    for i in inputs:
        data = (sha256(i) if isinstance(i, Path) else i)
        data = data.encode() if isinstance(data, str) else data
        h.update(b"%d:" % len(data) + data)
    return h.hexdigest()[:16]


SUMS = "SHA256SUMS"


def _sums(folder):
    """One line a file or symbolic link of @folder, in order."""
    lines = []
    for base, dirs, files in os.walk(folder):
        for name in sorted(files + [d for d in dirs
                                    if os.path.islink(f"{base}/{d}")]):
            path = Path(base, name)
            rel = path.relative_to(folder)
            if str(rel) == SUMS:
                continue
            if path.is_symlink():
                digest = hashlib.sha256(os.readlink(path).encode()).hexdigest()
            else:
                digest = sha256(path)
            lines.append(f"{digest}  {rel}\n")
    return "".join(sorted(lines, key=lambda s: s[66:]))


def cache_entry(kind, key, make, what=None):
    """The folder CACHE/kind/key; @make(tmp) fills a new one.

    An entry appears whole or not at all, and is verified at each use; a
    broken one is made anew.
    """
    what = what or f"{kind}/{key}"
    entry = CACHE / kind / key
    with lock(CACHE / kind / f".{key}.lock", what):
        if entry.exists():
            sums = entry / SUMS
            if sums.exists() and sums.read_text() == _sums(entry):
                return entry
            say(f"{entry} is broken, making it anew")
            shutil.rmtree(entry)
        for old in entry.parent.glob(f".{key}.tmp*"):
            shutil.rmtree(old)
        tmp = Path(tempfile.mkdtemp(prefix=f".{key}.tmp", dir=entry.parent))
        try:
            tmp.chmod(0o755)
            make(tmp)
            (tmp / SUMS).write_text(_sums(tmp))
            tmp.rename(entry)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
    return entry
