# shellcheck shell=bash disable=SC2034,SC2154
# Words of the command line tests: sourced, with the folder of programs as $1.
# A test runs in a folder of its own with a cluster.yaml of three nodes on free ports.
set -u
bin=$(cd "$1" && pwd)
folder=$(mktemp -d "${TMPDIR:-/tmp}/shoal-cli.XXXXXX")
export PATH="$bin:$PATH"
passed=0 failed=0

ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); printf 'FAILED: %s\n' "$*"; }

# expect CODE WORDS COMMAND...: its exit code, and WORDS in what it prints. An error is one sentence
# on standard error with nothing on standard output; anything else prints nothing on standard error.
expect() {
    local code=$1 words=$2 got; shift 2
    "$@" >out 2>err; got=$?
    if [ "$got" != "$code" ]; then bad "\`$*\` exits $got, not $code: $(head -c 300 err)"; return; fi
    if ! grep -qF -- "$words" out err; then bad "\`$*\` does not say \"$words\": $(head -c 300 out err)"; return; fi
    if [ "$code" = 2 ] && { [ -s out ] || [ "$(wc -l <err)" != 1 ]; }; then bad "\`$*\` says more than one sentence"; return; fi
    if [ "$code" = 0 ] && [ -s err ]; then bad "\`$*\` succeeds but complains: $(head -c 300 err)"; return; fi
    ok
}

# Every line of a run's output is a JSON object with a schema.
expect_json() {
    if "$@" -o json | python3 -c '
import json, sys
n = 0
for line in sys.stdin:
    assert "schema" in json.loads(line)
    n += 1
assert n > 0'; then ok; else bad "\`$* -o json\` is not one JSON object a line"; fi
}

wait_a_little() { python3 -c 'import select; select.select([], [], [], 0.05)'; }

pids() { cat state/*.pid 2>/dev/null | cut -d' ' -f1; }
# Those of the pids given that run (a zombie does not).
alive() { local p; for p in "$@"; do grep -q '^State:[[:space:]]*[^ZX]' "/proc/$p/status" 2>/dev/null && echo "$p"; done; }
until_gone() { local i; for i in $(seq 200); do [ -z "$(alive "$@")" ] && return 0; wait_a_little; done; return 1; }

free_ports() {
    python3 -c '
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in held])' "$1"
}

write_config() {
    local p; read -r -a p <<<"$(free_ports 6)"
    cat >"$1" <<YAML
replicas: 2
state_dir: state
node: {memory: 32MiB}
nodes:
- {name: n1, data: 127.0.0.1:${p[0]}, control: 127.0.0.1:${p[3]}, domain: a}
- {name: n2, data: 127.0.0.1:${p[1]}, control: 127.0.0.1:${p[4]}, domain: b}
- {name: n3, data: 127.0.0.1:${p[2]}, control: 127.0.0.1:${p[5]}, domain: c}
YAML
}

finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
}

leave() { cd /; rm -rf "$folder"; }
trap leave EXIT
cd "$folder" || exit 1
write_config cluster.yaml
