# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch series in its two forms: files of the project (patches/ and our
own files) and commits of build/tree.

patches/series has a line a commit: the patch's name, then the paths of our
own files that arrive in it. A patch is the commit message, a line "---" and
the diff to QEMU's own files.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from common import BUILD, ROOT, die

TREE = BUILD / "tree"
BASE = BUILD / "base"
PATCHES = ROOT / "patches"
SERIES = PATCHES / "series"
TIP = "refs/series/tip"
# What lies here is the project's; all other folders mirror QEMU's.
PROJECT_DIRS = {".git", ".ci", "bench", "build", "lab", "patches", "tools"}
IDENTITY = "QEMU series"
EMAIL = "series@localhost"
DATE = "2026-01-01T00:00:00+00:00"

_OPTIONS = [
    "core.autocrlf=false", "core.eol=lf", "core.fileMode=true",
    "core.excludesFile=/dev/null", "core.attributesFile=/dev/null",
    "core.hooksPath=/dev/null", "core.quotePath=false", "core.editor=true",
    "commit.gpgSign=false", "tag.gpgSign=false", "gc.auto=0",
    "advice.detachedHead=false", "safe.directory=*", "apply.whitespace=nowarn",
    "init.defaultBranch=series", "rebase.autoSquash=false",
]


class GitError(Exception):
    pass


def git_env():
    """An environment in which nobody's git configuration has a say."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_LITERAL_PATHSPECS": "1", "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C", "TZ": "UTC"}
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": IDENTITY, f"GIT_{role}_EMAIL": EMAIL,
                f"GIT_{role}_DATE": DATE}
    return env


class Repo:
    """A git work tree, here always build/tree or a worktree of it."""

    def __init__(self, path):
        self.path = Path(path)

    def raw(self, *args, stdin=None, index=None, **env):
        """stdout as bytes; raises GitError with git's own words."""
        full = git_env() | env
        if index:
            full["GIT_INDEX_FILE"] = str(index)
        options = [x for o in _OPTIONS for x in ("-c", o)]
        try:
            reply = subprocess.run(
                ["git", *options, *map(str, args)], cwd=self.path, env=full,
                input=stdin if stdin is not None else b"",
                capture_output=True)
        except FileNotFoundError:
            if not self.path.is_dir():
                raise GitError(f"{self.path} is not there") from None
            die("git is not there", "make deps")
        if reply.returncode:
            raise GitError(reply.stderr.decode(errors="replace").strip()
                           or reply.stdout.decode(errors="replace").strip())
        return reply.stdout

    def __call__(self, *args, **kw):
        return self.raw(*args, **kw).decode(errors="surrogateescape").strip()

    def get(self, *args):
        """As a call, None when git refuses."""
        try:
            return self(*args)
        except GitError:
            return None

    def names(self, *args):
        """A NUL-separated list of paths."""
        text = self.raw(*args).decode(errors="surrogateescape")
        return [n for n in text.split("\0") if n]

    def dirty(self):
        """Uncommitted changes, untracked files included."""
        return self("status", "--porcelain", "--untracked-files=normal")

    def base_files(self):
        return set(self.names("ls-tree", "-r", "-z", "--name-only", "base"))

    def commits(self, tip):
        return self("rev-list", "--reverse", f"base..{tip}").split()


def worktree(repo, place, commit):
    """Have @commit in a worktree of @repo at @place, pristine; files that are
    the same keep their times."""
    commit, work = repo("rev-parse", f"{commit}^{{commit}}"), Repo(place)
    if work.get("rev-parse", "--show-toplevel") != str(place) or \
            work.get("rev-parse", "HEAD") is None:
        if place.exists():
            shutil.rmtree(place)
        repo("worktree", "prune")
        repo("worktree", "add", "-q", "--force", "--detach", place, commit)
    elif work("rev-parse", "HEAD") != commit or work.dirty():
        work("reset", "-q", "--hard", commit)
        work("clean", "-fdq")


@dataclass
class Patch:
    name: str
    message: str
    diff: bytes
    own: dict = field(default_factory=dict)     # path: (mode, content)
    comments: list = field(default_factory=list)

    def text(self):
        return self.message.encode() + b"\n---\n" + self.diff

    def line(self):
        return self.name + (f"  {' '.join(self.own)}" if self.own else "")

    @property
    def subject(self):
        return self.message.split("\n", 1)[0]


def slug(subject):
    """A patch's file name, from its subject alone."""
    return re.sub(r"[^a-z0-9]+", "-", subject.lower()).strip("-")[:60] \
        .rstrip("-") + ".patch"


# From the project's files

def own_file(path):
    """(mode, content) of one of our own files."""
    p = ROOT / path
    if p.is_symlink():
        return "120000", os.readlink(p).encode()
    return ("100755" if os.access(p, os.X_OK) else "100644"), p.read_bytes()


def load():
    """(patches in order, trailing comments) as the project has them."""
    patches, comments, seen = [], [], {}
    for number, line in enumerate(SERIES.read_text().splitlines(), 1):
        name, *own = line.split("#")[0].split() or [""]
        if not name:
            comments.append(line)
            continue
        where = f"patches/series line {number}"
        path = PATCHES / name
        if not path.exists():
            die(f"{where}: patches/{name} is not there")
        for key in [name, *own]:
            if key in seen:
                die(f"{where}: {key} is also in line {seen[key]}")
            seen[key] = number
        for file in own:
            if not (ROOT / file).is_file():
                die(f"{where}: {file} is not there")
        head, mark, diff = path.read_bytes().partition(b"\n---\n")
        if not mark or not head.strip():
            die(f"patches/{name}: no commit message ended by a line \"---\"")
        if re.search(rb"^new file mode", diff, re.M):
            die(f"patches/{name} makes a new file: list it in patches/series "
                f"and keep it in the project as it is")
        patches.append(Patch(name, head.decode(), diff,
                             {f: own_file(f) for f in own}, comments))
        comments = []
    return patches, comments


def unlisted(patches):
    """Files that lie where our own files do but are in no patch's list."""
    listed = {f for p in patches for f in p.own}
    found = []
    for top in sorted(ROOT.iterdir()):
        if not top.is_dir() or top.name in PROJECT_DIRS:
            continue
        for base, dirs, files in os.walk(top):
            dirs[:] = [d for d in dirs if d != "__pycache__"]
            found += [os.path.relpath(f"{base}/{f}", ROOT) for f in files]
    return sorted(set(found) - listed)


# To commits

def generate(repo, patches, **env):
    """Commit @patches on `base`, touching neither work tree nor HEAD; the
    same patches give the same commits. Returns the last one. @env may name
    another author."""
    base_files = repo.base_files()
    with tempfile.TemporaryDirectory(dir=repo.path / ".git") as tmp:
        index = Path(tmp, "index")
        repo("read-tree", "base", index=index)
        tip = repo("rev-parse", "base^{commit}")
        for patch in patches:
            if patch.diff.strip():
                apply(repo, patch, index)
            entries = b""
            for path, (mode, content) in patch.own.items():
                if path in base_files:
                    die(f"{path} is a file of QEMU: change it by a patch")
                blob = repo("hash-object", "-w", "--stdin", stdin=content)
                entries += f"{mode} {blob}\t{path}\0".encode()
            if entries:
                repo("update-index", "-z", "--index-info", stdin=entries,
                     index=index)
            tree = repo("write-tree", index=index)
            tip = repo("commit-tree", tree, "-p", tip,
                       stdin=patch.message.encode() + b"\n", **env)
    return tip


def apply(repo, patch, index):
    try:
        repo("apply", "--cached", "-p1", "-", stdin=patch.diff, index=index)
    except GitError as e:
        first = str(e).splitlines()[0].removeprefix("error: ")
        m = re.match(r"patch failed: (.*):(\d+)$", first)
        if m:
            hunk = failed_hunk(patch.diff, m[1], int(m[2]))
            die(f"patches/{patch.name} does not apply to {m[1]} at the hunk "
                f"{hunk}")
        die(f"patches/{patch.name} does not apply: {first}")


def failed_hunk(diff, file, line):
    """The header of the hunk of @file that begins at @line."""
    inside = False
    for text in diff.decode(errors="replace").splitlines():
        if text.startswith("diff --git "):
            inside = text.endswith(f" b/{file}")
        elif inside and re.match(rf"@@ -{line}\b", text):
            return text
    return f"at line {line}"


# From commits

def diff_of(repo, commit, files):
    """The change of @commit to @files, without blob names."""
    if not files:
        return b""
    text = repo.raw("diff-tree", "-p", "-U3", "--no-renames", "--no-color",
                    "--no-ext-diff", "--no-textconv", "--binary",
                    "--full-index", "--src-prefix=a/", "--dst-prefix=b/",
                    "--diff-algorithm=default", f"{commit}^", commit, "--",
                    *files)
    parts = re.split(rb"^(?=diff --git )", text, flags=re.M)
    return b"".join(
        part if b"\nGIT binary patch\n" in part
        else re.sub(rb"^index [0-9a-f]+\.\.[0-9a-f]+.*\n", b"", part, count=1,
                    flags=re.M)
        for part in parts)


def message_of(repo, commit):
    """The commit's message, ready for a patch file."""
    lines = [line.rstrip() for line in
             repo("log", "-1", "--format=%B", commit).splitlines()
             if not line.startswith("Signed-off-by:")]
    if "---" in lines:
        die(f"the message of {commit[:12]} has a line \"---\", which ends a "
            f"message in a patch")
    return "\n".join(lines).strip()


def from_commits(repo, tip):
    """The patches that base..@tip stands for."""
    base_files = repo.base_files()
    content = {}
    for entry in repo.names("ls-tree", "-r", "-z", tip):
        meta, path = entry.split("\t", 1)
        if path not in base_files:
            mode, _, blob = meta.split()
            content[path] = (mode, blob)
    patches, arrived = [], set()
    for commit in repo.commits(tip):
        if repo.get("rev-parse", f"{commit}^2"):
            die(f"{commit[:12]} is a merge; the series is a line of commits")
        changed = repo.names("diff-tree", "-r", "-z", "--name-only",
                             "--no-renames", f"{commit}^", commit)
        diff = diff_of(repo, commit, [f for f in changed if f in base_files])
        own = {f: (content[f][0], repo.raw("cat-file", "blob", content[f][1]))
               for f in changed if f in content and f not in arrived}
        arrived |= own.keys()
        if diff or own:
            message = message_of(repo, commit)
            patches.append(Patch(slug(message.split("\n", 1)[0]), message,
                                 diff, own))
    for path in content:
        if "/" not in path or path.split("/")[0] in PROJECT_DIRS:
            die(f"{path} cannot be kept: that place is the project's own")
    names = [p.name for p in patches]
    for name in names:
        if names.count(name) > 1:
            die(f"two commits would both be patches/{name}: change a subject")
    return patches


def store(patches, old, trailing):
    """Write @patches to the project, where @old ones are; only files that
    differ are written. Returns what was changed, by path."""
    from common import write_file
    before = {p.name: p for p in old}
    changed = []

    def put(path, mode, data):
        p = ROOT / path
        if os.path.lexists(p) and own_file(path) == (mode, data):
            return
        changed.append(path)
        if mode == "120000":
            p.parent.mkdir(parents=True, exist_ok=True)
            p.unlink(missing_ok=True)
            p.symlink_to(data.decode())
            return
        write_file(p, data)
        p.chmod(0o755 if mode == "100755" else 0o644)

    def remove(path):
        changed.append(path)
        (ROOT / path).unlink()
        for folder in (ROOT / path).parents:
            if folder == ROOT or any(folder.iterdir()):
                break
            folder.rmdir()

    for patch in patches:
        if patch.name in before:
            was = before[patch.name]
            patch.comments = was.comments
            patch.own = {f: patch.own[f] for f in
                         [f for f in was.own if f in patch.own] +
                         [f for f in patch.own if f not in was.own]}
        put(f"patches/{patch.name}", "100644", patch.text())
        for path, (mode, data) in patch.own.items():
            put(path, mode, data)
    for name in before.keys() - {p.name for p in patches}:
        remove(f"patches/{name}")
    for path in ({f for p in old for f in p.own} -
                 {f for p in patches for f in p.own}):
        remove(path)

    if [p.line().split() for p in patches] != [p.line().split() for p in old]:
        lines = [x for p in patches for x in (*p.comments, p.line())]
        gone = [c for p in old if p.name not in {q.name for q in patches}
                for c in p.comments if c.strip()]
        lines = [*lines, *gone, *trailing] if old else [*trailing, *lines]
        put("patches/series", "100644",
            "".join(f"{x}\n" for x in lines).encode())
    return changed
