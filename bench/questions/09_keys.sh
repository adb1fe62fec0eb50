# shellcheck shell=bash
# Order by key: asked for, not built yet.

title "ordering => 'key' with 10,000 keys" "ordering"
series key evbus "ordered by key"
missing key "evbus has no ordering => 'key' yet"
need key "10,000 keys" '>=' 0.8 unordered

measure() { :; }
