"""Texts to train on, from what any Debian machine can get: package descriptions, dictionaries, manuals, documentation,
fortunes and source code. apt fetches everything, with the machine's own configuration.

Every document gives up to three texts: itself, its title or first sentence as somebody might search for it, and a
fragment. No label is needed: the teacher labels whatever it is given.
"""

import ast
import collections
import gzip
import html
import io
import json
import pathlib
import random
import re
import subprocess
import tarfile

# Package, what to take of it (a pattern on paths), how to read it, and the most documents to keep.
SOURCES = [
    ("dict-wn", r"/wn\.(dict|index)", "wordnet", 45000),
    ("dict-gcide", r"/gcide\.(dict|index)", "dictionary", 22000),
    ("dict-foldoc", r"/foldoc\.(dict|index)", "dictionary", 9000),
    ("dict-jargon", r"/jargon\.(dict|index)", "dictionary", 2000),
    ("dict-devil", r"/devil\.(dict|index)", "dictionary", 1000),
    ("dict-elements", r"/elements\.(dict|index)", "dictionary", 200),
    ("manpages", r"/man\d/", "man", 3000),
    ("manpages-dev", r"/man\d/", "man", 5000),
    ("git-doc", r"\.html$", "html", 1500),
    ("perl-doc", r"\.pod$", "pod", 4000),
    ("python3.11-doc", r"\.html$", "html", 5000),
    ("postgresql-doc-15", r"\.html$", "html", 6000),
    ("sqlite3-doc", r"\.html$", "html", 3000),
    ("apache2-doc", r"\.html(\.en)?$", "html", 3000),
    ("wireshark-doc", r"\.html$", "html", 1500),
    ("rust-doc", r"html/(book|std|reference|rust-by-example|nomicon)/.*\.html$", "html", 4000),
    ("gnumeric-doc", r"/C/.*\.(html|page|xml)$", "html", 1500),
    ("gnome-user-docs", r"/C/.*\.page$", "html", 3000),
    ("debian-reference-en", r"\.en\.html$", "html", 2000),
    ("debian-faq", r"\.en\.html$", "html", 800),
    ("debian-history", r"\.en\.html$", "html", 300),
    ("developers-reference", r"\.html$", "html", 800),
    ("harden-doc", r"en.*\.html$", "html", 1500),
    ("anarchism", r"\.html$", "html", 6000),
    ("freeciv-data", r"helpdata\.txt$|civ2civ3/(buildings|techs|units|governments)\.ruleset$|nation/.*\.ruleset$",
     "ruleset", 1500),
    ("fortunes", r"/fortunes/[a-z-]+$", "fortunes", 6000),
    ("fortunes-min", r"/fortunes/[a-z-]+$", "fortunes", 1500),
    ("vim-runtime", r"/doc/[a-z_0-9]+\.txt$", "plain", 2500),
    ("libpython3.11-stdlib", r"\.py$", "python", 3500),
    ("node-lodash", r"/(lodash|_)\.js$|/fp/", "code", 800),
    ("librust-tokio-dev", r"/src/.*\.rs$", "code", 800),
    ("librust-regex-dev", r"/src/.*\.rs$", "code", 300),
    ("postgresql-doc-15", r"\.html$", "sql", 800),
]
DESCRIPTIONS_MAX = 40000

# Bounds of a document, in characters. The teacher sees 256 of its tokens, about 1,100 characters.
CHARS_MIN, CHARS_MAX = 40, 900

INSTRUCTIONS = [
    "Given a web search query, retrieve relevant passages that answer the query",
    "Given a question, retrieve passages that answer the question",
    "Retrieve semantically similar text",
    "Find the documentation of what the user looks for",
    "Given a description, find the Debian package",
    "Given a query in natural language, retrieve relevant code",
    "Find the definition of a term",
    "Represent this sentence for searching relevant passages",
]

ABOUT_THING = [
    "what is {}", "what is {}?", "What is {}?", "what does {} mean", "definition of {}", "explain {}", "{} explained",
    "tell me about {}", "What is meant by {}?", "meaning of {}", "{} examples", "why is {} important", "How does {} work?",
    "where does {} come from", "facts about {}", "{}",
]
ABOUT_TASK = [
    "{}", "{}", "how to use {}", "package for {}", "looking for {}", "I need {}", "is there {} for Linux?",
    "which program offers {}", "Which package provides {}?", "how can I get {}", "best {}", "documentation of {}",
    "Where do I find {}?",
]
ABOUT_CODE = ["{}", "function to {}", "code that does: {}", "how to {} in code", "{} example", "snippet: {}", "How do I {}?"]

# Runs of this many words that a bundled passage or query has too exclude a text.
SHINGLE = 6


def log(message):
    print(message, flush=True)


# Fetching ------------------------------------------------------------------------------------------------------------

def apt_options(work):
    """Own package lists, so that neither the machine's are changed nor root is needed. Everything else is apt's."""
    (work / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={work / 'lists'}", "-o", "Acquire::Languages=en", "-o", "APT::Sandbox::User=root"]


def fetch(work):
    options = apt_options(work)
    if not list((work / "lists").glob("*Translation-en*")):
        log("fetching package lists")
        subprocess.run(["apt-get", "-q", *options, "update"], check=True)
    debs = work / "debs"
    debs.mkdir(exist_ok=True)
    wanted = sorted({source[0] for source in SOURCES})
    missing = [name for name in wanted if not list(debs.glob(f"{name}_*.deb"))]
    if missing:
        log(f"fetching {len(missing)} packages")
        subprocess.run(["apt-get", "-q", *options, "download", *missing], cwd=debs, check=True)


def members(work, package, pattern):
    """Files of a package whose path matches, unpacked in memory, sorted by path."""
    (deb,) = (work / "debs").glob(f"{package}_*.deb")
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    found = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            path = member.name.removesuffix(".gz").removesuffix(".dz")
            if member.isfile() and re.search(pattern, path) and member.size < 60_000_000:
                data = archive.extractfile(member).read()
                if member.name.endswith((".gz", ".dz")):
                    data = gzip.decompress(data)
                found.append((path, data))
    return sorted(found)


# Reading. Each reader yields (title, text); a title may be empty. -----------------------------------------------------

def blanks(text):
    return " ".join(text.split())


def descriptions(work):
    for path in sorted((work / "lists").glob("*Translation-en*")):
        raw = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], check=True, capture_output=True).stdout
        for entry in raw.decode("utf-8", "replace").split("\n\n"):
            body = entry.partition("\nDescription-en: ")[2]
            title, _, long = body.partition("\n")
            paragraphs = [blanks(part) for part in re.split(r"\n \.\n", long)]
            yield blanks(title), paragraphs


def dictionary(files):
    digits = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}

    def number(text):
        value = 0
        for char in text:
            value = value * 64 + digits[char]
        return value

    data = next(data for path, data in files if path.endswith(".dict"))
    index = next(data for path, data in files if path.endswith(".index"))
    seen = set()
    for line in index.decode("utf-8", "replace").splitlines():
        head, offset, length = line.split("\t")[:3]
        place = number(offset)
        if head.startswith("00") or place in seen:
            continue
        seen.add(place)
        entry = data[place:place + number(length)].decode("utf-8", "replace")
        title, _, body = entry.partition("\n")
        body = re.sub(r"\[(1913 Webster|PJC|WordNet 1\.5|1913 Webster \+PJC|\+PJC|Webster[^\]]*)\]|[{}]|\\[^\\\n]{1,40}\\", "", body)
        yield head, body


def gcide_like(files):
    for head, body in dictionary(files):
        # The senses of a long entry stand for themselves.
        for part in re.split(r"\n\s*\n|\n\s+\d+\. ", body):
            text = re.sub(r"^(\d+\.|[\s\[\]:;,.])+", "", blanks(part))
            if len(text) >= 30:
                yield head, text if text.lower().startswith(head.lower()) else f"{head}: {text}"


def wordnet(files):
    seen = set()
    for head, body in dictionary(files):
        for part in re.split(r"\n\s+(?:(?:n|v|adj|adv)\s+\d*\s*:|\d+:)\s+", "\n" + body)[1:]:
            text = blanks(re.sub(r"\[(syn|ant):.*?\]", "", part, flags=re.S))
            if len(text) >= 25 and text not in seen:
                seen.add(text)
                word = head.replace("_", " ")
                # With the word in every other text, and without it as a question's answer.
                yield word, f"{word}: {text}" if len(seen) % 2 else text


def roff(files):
    for path, data in files:
        title, paragraph, skip = "", [], False
        for line in data.decode("utf-8", "replace").splitlines():
            line = re.sub(r"\\f[BIRP]|\\f\(..|\\f\[.*?\]|\\&|\\c|\\/", "", line)
            line = line.replace("\\-", "-").replace("\\e", "\\").replace("\\(aq", "'").replace("\\(bu", "*")
            line = re.sub(r"\\\((lq|rq|dq)|\\\*\(..|\\\[[^\]]*\]|\\s[-+]?\d+|\\['`]", "", line)
            if line.startswith((".\\\"", "'\\\"")):
                continue
            if line.startswith((".SH", ".SS", ".PP", ".TP", ".IP", ".P", ".LP", ".sp", ".RS", ".RE", ".TH")) or not line:
                text = blanks(" ".join(paragraph))
                if " - " in text[:60] and not title:
                    title = text.partition(" - ")[2]
                if text:
                    yield title, text
                paragraph = []
                skip = line.startswith((".SH SEE", ".SH COLO", ".SH \"SEE", ".TH"))
            elif line.startswith((".B", ".I", ".R", ".SM", ".BR", ".IR")):
                paragraph.append(line.partition(" ")[2].replace('"', ""))
            elif not line.startswith((".", "'")) and not skip:
                paragraph.append(line)


TAGS = re.compile(r"<[^>]*>")
DROPPED = re.compile(r"<(script|style|nav|head|svg|table class=\"docutils\")\b.*?</\1\s*>", re.S | re.I)
BLOCK = re.compile(r"<(p|li|dd|blockquote|note|item|h[1-4]|title|pre)\b[^>]*>(.*?)(?=</?(?:p|li|dd|blockquote|note|item|h[1-4]|title|pre|ul|ol|table|div|section)\b)",
                   re.S | re.I)


def web(files):
    for path, data in files:
        page = DROPPED.sub(" ", data.decode("utf-8", "replace"))
        title, gathered = "", ""
        for tag, inside in BLOCK.findall(page):
            text = blanks(html.unescape(TAGS.sub("", inside)).replace("¶", ""))
            if tag.lower() in ("title", "h1", "h2", "h3", "h4"):
                if gathered:
                    yield title, gathered
                title, gathered = re.sub(r"^[\dA-Z]?[\d.]*\s*", "", text) if len(text) < 120 else "", ""
            elif len(text) > 20:
                # Short paragraphs join the next; the length at which one is full varies.
                gathered = f"{gathered} {text}".strip()
                if len(gathered) > 150 + (len(text) * 7919) % 350:
                    yield title, gathered
                    gathered = ""
        if gathered:
            yield title, gathered


def pod(files):
    for path, data in files:
        title = ""
        for part in re.split(r"\n\s*\n", data.decode("utf-8", "replace")):
            part = re.sub(r"[BCFILSXEZ]<+\s?([^<>]*?)\s?>+", r"\1", part)
            if part.startswith("="):
                title = blanks(part.partition(" ")[2]) if part.startswith(("=head", "=item")) else title
            elif not part.startswith((" ", "\t")):
                yield title, blanks(part)


def plain(files):
    for path, data in files:
        for part in re.split(r"\n\s*\n|\n=+\n", data.decode("utf-8", "replace")):
            yield "", blanks(re.sub(r"[*|~]|\s>$", "", part))


def ruleset(files):
    for path, data in files:
        text = data.decode("utf-8", "replace")
        for name, body in re.findall(r'name\s*=\s*_\("(?:\?[^:"]*:)?([^"]+)"\)(.*?)(?=\n\[|\Z)', text, re.S):
            for strings in re.findall(r'(?:helptext|legend|text)\s*=\s*((?:_?\(?"(?:[^"\\]|\\.)*"\)?[,\s]*)+)', body):
                inside = " ".join(re.findall(r'"((?:[^"\\]|\\.)*)"', strings, re.S))
                yield name, blanks(inside.replace("\\n", " ").replace("\\\n", ""))


def fortunes(files):
    for path, data in files:
        if path.rsplit("/", 1)[-1] in ("zippy", "translate-me", "ascii-art", "songs-poems"):
            continue
        for part in data.decode("utf-8", "replace").split("\n%\n"):
            yield "", blanks(part)


def python(files):
    for path, data in files:
        if "/test" in path or "encodings/" in path:
            continue
        source = data.decode("utf-8", "replace")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and 3 <= node.end_lineno - node.lineno <= 24:
                said = (ast.get_docstring(node) or "").split("\n\n")[0]
                name = node.name.strip("_").replace("_", " ")
                yield blanks(said) or name, ast.get_source_segment(source, node)


def code(files):
    begin = re.compile(r"(pub(\(\w+\))? )?(async )?(fn|function|impl|struct) ")
    for path, data in files:
        said, body = [], []
        for line in data[:300_000].decode("utf-8", "replace").splitlines():
            if body:
                body.append(line)
                if line.startswith("}"):
                    if 3 < len(body) <= 30:
                        yield re.split(r"(?<=\.)\s|@|#", blanks(" ".join(said)))[0], "\n".join(body)
                    said, body = [], []
            elif begin.match(line):
                body = [line]
            elif line.lstrip().startswith(("//", "*", "/*")):
                said.append(re.sub(r"^\s*(///?!?|/\*\*?|\*/|\*)", "", line))
            elif not line.startswith("#"):
                said = []


def sql(files):
    for path, data in files:
        for inside in re.findall(r"<(?:pre|blockquote)[^>]*>(.*?)</(?:pre|blockquote)>", data.decode("utf-8", "replace"), re.S):
            text = html.unescape(TAGS.sub("", inside)).strip()
            if re.search(r"\b(SELECT|INSERT|UPDATE|CREATE|DELETE)\b", text):
                yield "", text


READERS = {"dictionary": gcide_like, "wordnet": wordnet, "man": roff, "html": web, "pod": pod, "plain": plain,
           "ruleset": ruleset, "fortunes": fortunes, "python": python, "code": code, "sql": sql}
CODE = ("python", "code", "sql")


# Choosing ------------------------------------------------------------------------------------------------------------

def words(text):
    return re.findall(r"\w+", text.lower())


def shingles(text):
    all_words = words(text)
    return {" ".join(all_words[i:i + SHINGLE]) for i in range(len(all_words) - SHINGLE + 1)}


def bundled(sample):
    """What the bundled passages and queries consist of: none of it may be trained on."""
    texts = [json.loads(line) for line in (sample / "corpus.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (sample / "queries.jsonl").read_text().splitlines()]
    parts, whole = set(), set()
    for text in [entry["text"] for entry in texts] + [entry["query"] for entry in asked]:
        parts |= shingles(text)
        whole.add(" ".join(words(text)))
    return parts, whole


def readable(text):
    letters = sum(char.isascii() and (char.isalpha() or char == " ") for char in text)
    return letters > 0.75 * len(text)


def cut(text, rng):
    """Cuts a long text behind a sentence (or a line of code), at lengths that vary."""
    if len(text) <= CHARS_MAX and (len(text) <= 450 or rng.random() < 0.5):
        return text
    limit = int(rng.triangular(150, CHARS_MAX, 300))
    if len(text) <= limit:
        return text
    end = max(text.rfind(mark, 0, limit) for mark in (". ", "\n", "; "))
    return text[:end + 1].strip() if end > 80 else text[:limit].rsplit(" ", 1)[0]


def documents(work, rng):
    """(kind, title, text) of all sources, each cut down to its share."""
    found = []
    seen_titles, seen_paragraphs = set(), collections.Counter()
    for title, paragraphs in descriptions(work):
        fresh = [part for part in paragraphs if part and seen_paragraphs[part] == 0]
        seen_paragraphs.update(paragraphs)
        stem = re.sub(r"\s*[-(,:].*$", "", title.lower())
        if fresh and len(fresh[0]) > 60 and (stem, fresh[0][:60]) not in seen_titles:
            seen_titles.add((stem, fresh[0][:60]))
            found.append(("package", title, " ".join(fresh)))
    rng.shuffle(found)
    found = found[:DESCRIPTIONS_MAX]
    log(f"descriptions: {len(found)}")
    for package, pattern, reader, most in SOURCES:
        here, seen = [], set()
        for title, text in READERS[reader](members(work, package, pattern)):
            text = text.strip()
            if reader in CODE:
                good = 60 <= len(text) <= 1500
            else:
                good = len(text) >= (20 if reader == "wordnet" else CHARS_MIN) and readable(text)
            if good and text not in seen:
                seen.add(text)
                here.append((reader if reader in CODE + ("wordnet", "dictionary") else "manual", title, text))
        rng.shuffle(here)
        log(f"{package}: {min(len(here), most)} of {len(here)}")
        found += here[:most]
    return found


def sentence(text):
    parts = [part for part in re.split(r"(?<=[.!?])\s+", text) if 20 <= len(part) <= 200]
    return parts


def derive(kind, title, text, rng):
    """The texts of a document: (role, text)."""
    body = cut(text, rng)
    # Titles tell what a passage is about; some passages carry theirs.
    if title and kind == "package" and rng.random() < 0.3:
        body = f"{title}. {body}"
    yield "passage", body
    forms = {"package": ABOUT_TASK, "wordnet": ABOUT_THING, "dictionary": ABOUT_THING, "manual": ABOUT_TASK}.get(kind, ABOUT_CODE)
    if title and 2 < len(title) < 160 and rng.random() < {"wordnet": 0.3, "dictionary": 0.3, "package": 0.75}.get(kind, 0.5):
        asked = title if kind == "wordnet" or rng.random() < 0.3 else title[0].lower() + title[1:]
        yield "query", rng.choice(forms).format(asked.rstrip("."))
    if kind in CODE:
        return
    choices = sentence(text)
    if choices and rng.random() < (0.25 if kind == "wordnet" else 0.35):
        yield "sentence", rng.choice(choices)
    all_words = text.split()
    if len(all_words) > 14 and rng.random() < 0.2:
        size = rng.randint(3, 12)
        start = rng.randrange(len(all_words) - size)
        part = " ".join(all_words[start:start + size])
        if rng.random() < 0.5:
            start = rng.choice(["how to", "why", "what happens when", "how do I", "when does", "can I", "is it true that",
                                "what is the difference between", "who", "where", "which"])
            part = f"{start} {part.lower().rstrip('.,;:')}" + rng.choice(["", "?"])
        yield "query", part


def build(work, sample, seed, held_out):
    """Writes texts.jsonl (to train on) and held-out.jsonl; documents are in one or the other with all their texts."""
    fetch(work)
    rng = random.Random(seed)
    forbidden, forbidden_whole = bundled(sample)
    dropped, everything, seen = 0, [], set()
    for number, (kind, title, text) in enumerate(documents(work, rng)):
        group = []
        for role, part in derive(kind, title, text, rng):
            if part in seen or not part.strip():
                continue
            if shingles(part) & forbidden or " ".join(words(part)) in forbidden_whole:
                dropped += 1
                continue
            seen.add(part)
            group.append({"doc": number, "kind": kind, "role": role, "text": part})
        if group:
            everything.append(group)
    log(f"dropped for overlap with the bundled texts: {dropped}")
    rng.shuffle(everything)
    kept, rest = [], iter(everything)
    while len(kept) < held_out:
        kept += next(rest)
    training = [entry for group in rest for entry in group]
    rng.shuffle(training)
    for name, entries in (("held-out.jsonl", kept), ("texts.jsonl", training)):
        with open(work / name, "w") as out:
            for entry in entries:
                out.write(json.dumps(entry, ensure_ascii=False) + "\n")
        shares = collections.Counter((entry["kind"], entry["role"]) for entry in entries)
        log(f"{name}: {len(entries)} texts, {sum(len(e['text']) for e in entries)} characters; {dict(shares)}")
