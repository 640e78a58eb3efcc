#!/bin/bash
# What `shoal` says without any node: help, versions, configuration files, and every wrong command
# line as a row of exit code, words of the sentence, command.
. "$(dirname "$0")/cli.sh" "$1"

expect 0 "usage: shoal NOUN" shoal --help
expect 0 "usage: shoal NOUN" shoal help
expect 0 "usage: shoal cluster VERB" shoal cluster --help
expect 0 "usage: shoal cluster up" shoal help cluster up
for verb in "cluster up" "cluster down" "cluster status" "node status" "node drain" \
    "config check" "config show" "version"; do
    expect 0 "usage: shoal $verb" shoal $verb --help
    [ "$(shoal $verb --help | sed -n '/^examples:/,$p' | grep -c '^  shoal ')" = 2 ] && ok ||
        bad "shoal $verb --help shows no two examples"
done
# The examples of what needs no node run as they stand.
for verb in "config check" "config show" "version"; do
    while read -r line; do
        expect 0 "" $line
    done < <(shoal $verb --help | sed -n '/^examples:/,$p' | grep '^  shoal ')
done
while read -r line; do expect 0 "" $line; done < <(shoal --help | sed -n '/^examples:/,/^$/p' | grep '^  shoal ')
expect_json shoal version
expect_json shoal config check
expect_json shoal config show
[ "$(shoal config show -o json | grep -c '"shoal.knob/1"')" -le 40 ] && ok || bad "more than 40 knobs"

expect 2 "what is to be done?" shoal
expect 2 'did you mean "cluster"?' shoal clster
expect 2 'unknown noun "frobnicate"' shoal frobnicate
expect 2 'unknown noun "--frob"' shoal --frob
expect 2 "cluster what?" shoal cluster
expect 2 'did you mean "status"?' shoal cluster statsu
expect 2 'cluster has no verb "frobnicate"' shoal cluster frobnicate
expect 2 "did you mean --timeout?" shoal cluster up --timeot 3s
expect 2 'unknown flag "--all"' shoal cluster up --all
expect 2 'unknown flag' shoal cluster up -x
expect 2 "--config needs a value" shoal cluster up --config
expect 2 "--config is empty" shoal cluster up --config ""
expect 2 '--timeout: "3" has no unit' shoal cluster up --timeout 3
expect 2 "--timeout: 0s is out of range" shoal cluster up --timeout 0s
expect 2 '"yaml" is no format' shoal config show -o yaml
expect 2 '"extra" is too much' shoal cluster up extra
expect 2 '"b" is too much' shoal config check a b
expect 2 "name nodes, or give --all" shoal node drain
expect 2 "name nodes, or give --all" shoal node drain n1 --all
expect 2 'has no node "n9"' shoal node status n9
expect 1 "cannot be opened" shoal config check missing.yaml
expect 1 "cannot be opened" shoal config show missing.yaml
mkdir -p empty && (cd empty && shoal config show | grep -q "^No cluster.yaml here" && shoal config show | grep -q "network.tcp") && ok || bad "config show without a file"
expect 1 "cannot be opened" shoal cluster up --config missing.yaml
printf 'replica: 2\n' >bad.yaml
expect 2 'bad.yaml: line 1: unknown key "replica"' shoal config check bad.yaml
expect 2 "unknown key" shoal cluster up -c bad.yaml
printf 'node: {memory: 256}\n' >bad.yaml
expect 2 'node.memory: "256" has no unit' shoal config check bad.yaml
printf 'replicas: 1\n' >bad.yaml
expect 2 "names no nodes" shoal cluster up -c bad.yaml
expect 2 "names no nodes" shoal cluster status -c bad.yaml
printf 'nodes:\n- {name: n1, data: 0.0.0.0:7101, control: 127.0.0.1:7201}\n' >bad.yaml
expect 1 "0.0.0.0:7101 is beyond loopback" shoal cluster up -c bad.yaml
printf 'nodes:\n- {name: n1, data: "[::1]:7101", control: 127.0.0.1:7201}\n' >bad.yaml
expect 2 "bad.yaml: node n1: data: [::1]:7101 is an IPv6 address, and UCX carries IPv4 only; set network.tcp: true" shoal cluster up -c bad.yaml
expect 3 "no node answers" shoal cluster status
expect 3 "no node answers" shoal node drain --all --timeout 200ms
expect 0 "0 nodes stopped" shoal cluster down

# Nodes that do not come up, played by scripts: the others are stopped again, and Ctrl-C ends it.
mkdir fake && cp "$bin/shoal" fake/
printf '#!/bin/sh\necho "no such thing" >&2; exit 1\n' >fake/shoal-kvstore && chmod +x fake/shoal-kvstore
expect 1 "node n1 ended at its start; the last line of state/n1.log: no such thing" fake/shoal cluster up
printf '#!/bin/sh\necho $$ >>started; exec tail -f /dev/null\n' >fake/shoal-kvstore
expect 1 "node n1 runs but does not serve" fake/shoal cluster up --timeout 300ms
until_gone $(cat started) && [ -z "$(pids)" ] && [ "$(wc -l <started)" = 3 ] && ok || bad "a failed up leaves nodes"
fake/shoal cluster up 2>err & up=$!
for i in $(seq 200); do [ "$(wc -l <started)" = 6 ] && break; wait_a_little; done
expect 1 "another \`shoal cluster up\` or \`down\` is at work" fake/shoal cluster down
kill -INT $up; wait $up; code=$?
[ $code = 130 ] && grep -q "interrupted" err && ok || bad "Ctrl-C exits $code: $(cat err)"
until_gone $(cat started) && [ -z "$(pids)" ] && ok || bad "Ctrl-C leaves nodes"
mv fake/shoal-kvstore fake/other
[ -e "$bin/shoal-kvstore" ] || expect 1 "shoal-kvstore is neither beside this program nor in PATH" fake/shoal cluster up
expect 0 "0 nodes stopped" shoal cluster down
[ ! -e state ] && ok || bad "down leaves $(ls state)"

# decode, eval, bench and doctor are the worker's, with the verb as its first argument.
printf '#!/bin/sh\necho "worker: $*"; exit 5\n' >fake/shoal-worker && chmod +x fake/shoal-worker
expect 5 "worker: decode in.jsonl --output out.jsonl" fake/shoal decode in.jsonl --output out.jsonl
expect 5 "worker: eval --help" fake/shoal eval --help
expect 5 "worker: bench decode --model m -o json" fake/shoal bench decode --model m -o json
expect 5 "worker: doctor --quick" fake/shoal doctor --quick
expect 2 'did you mean "doctor"?' shoal docter

# A noun of somebody else's is a program in PATH, with its arguments and its exit code.
mkdir extra && printf '#!/bin/sh\necho "hello $1"; exit 7\n' >extra/shoal-greet && chmod +x extra/shoal-greet
PATH="$PWD/extra:$PATH" expect 7 "hello you" shoal greet you
# Output that cannot be written is a failure.
shoal config show >/dev/full 2>err; [ $? = 1 ] && grep -q "standard output cannot be written" err && ok || bad "full output goes unnoticed"
finish
