#!/usr/bin/env python3
"""Checks META.json against the keys that the PGXN Meta Spec 1.0.0 requires, and all places that tell the version.

usage: meta.py CHECKOUT; prints what is wrong, and then its exit status is 1
"""
import json
import os
import re
import sys

# A semantic version, as the spec wants it: three numbers, perhaps a suffix that begins with a letter.
VERSION = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)([A-Za-z][-0-9A-Za-z]*)?"
LICENSES = {"agpl_3", "apache_1_1", "apache_2_0", "artistic_1", "artistic_2", "bsd", "freebsd", "gfdl_1_2", "gfdl_1_3",
            "gpl_1", "gpl_2", "gpl_3", "lgpl_2_1", "lgpl_3_0", "mit", "mozilla_1_0", "mozilla_1_1", "openssl",
            "perl_5", "postgresql", "qpl_1_0", "ssleay", "sun", "zlib", "open_source", "restricted", "unrestricted", "unknown"}
KEYS = {"name", "version", "abstract", "maintainer", "license", "provides", "meta-spec", "description", "generated_by",
        "tags", "no_index", "prereqs", "release_status", "resources"}

wrong = []


def want(good, what):
    if not good:
        wrong.append(what)


def is_text(value):
    return isinstance(value, str) and value.strip() != ""


def check_spec(meta, root):
    for key in "name", "version", "abstract", "maintainer", "license", "provides", "meta-spec":
        want(key in meta, f"{key} is required")
    if wrong:
        return
    for key in meta:
        want(key in KEYS or re.fullmatch("[xX]_.+", key), f"{key} is no key of the spec")
    want(is_text(meta["name"]) and re.fullmatch(r"[^\s/\\\x00-\x1f]{2,}", meta["name"]), "name is a word of two letters and more")
    want(re.fullmatch(VERSION, meta["version"]), "version is a semantic version")
    want(is_text(meta["abstract"]), "abstract is a text")
    people = meta["maintainer"]
    want(is_text(people) or isinstance(people, list) and people and all(map(is_text, people)), "maintainer is a text, or a list of some")
    licenses = meta["license"]
    want(isinstance(licenses, dict) or licenses in LICENSES
         or isinstance(licenses, list) and licenses and set(licenses) <= LICENSES, "license is known to the spec")
    want(meta.get("release_status", "stable") in ("stable", "testing", "unstable"), "release_status is one of three")
    want(all(map(is_text, meta.get("tags", ["none"]))), "tags are texts")
    spec = meta["meta-spec"]
    want(isinstance(spec, dict) and spec.get("version") == "1.0.0", "meta-spec.version is 1.0.0")
    want(isinstance(meta["provides"], dict) and meta["provides"], "provides names an extension")
    for name, extension in meta["provides"].items():
        want(re.fullmatch(VERSION, extension.get("version", "")), f"provides.{name}.version is a semantic version")
        want("file" in extension, f"provides.{name}.file is required")
        for key in "file", "docfile":
            want(key not in extension or os.path.isfile(os.path.join(root, extension[key])), f"provides.{name}.{key} exists")
    for phase, relations in meta.get("prereqs", {}).items():
        want(phase in ("configure", "build", "test", "runtime", "develop"), f"prereqs.{phase} is a phase")
        for relation, needed in relations.items():
            want(relation in ("requires", "recommends", "suggests", "conflicts"), f"prereqs.{phase}.{relation} is a relation")
            for name, version in needed.items():
                want(version == 0 or re.fullmatch(VERSION, str(version)), f"prereqs: {name} has a semantic version, or 0")


def check_versions(meta, root):
    def first(file, pattern):
        with open(os.path.join(root, file), encoding="utf-8") as text:
            found = re.search(pattern, text.read(), re.MULTILINE)
        want(found, f"{file} tells a version")
        return found.group(1) if found else ""

    # PostgreSQL and Debian leave out a last 0 that PGXN asks for.
    version = first("evbus.control", r"^default_version = '([^']*)'")
    full = version + ".0" * (2 - version.count("."))
    want(meta["version"] == full, f"META.json has version {meta['version']}, evbus.control {version}")
    for name, extension in meta["provides"].items():
        want(extension.get("version") == full, f"provides.{name} has version {extension.get('version')}, evbus.control {version}")
    for file, pattern in ("debian/changelog", r"\Aevbus \(([^)]*)\)"), ("CHANGELOG.md", r"^## (\S+)"):
        told = first(file, pattern)
        want(told == version, f"{file} has version {told} first, evbus.control {version}")


def main():
    root = sys.argv[1]
    with open(os.path.join(root, "META.json"), encoding="utf-8") as text:
        meta = json.load(text)
    check_spec(meta, root)
    if not wrong:
        check_versions(meta, root)
    print("\n".join(wrong))
    return 1 if wrong else 0


sys.exit(main())
