#!/bin/bash
# `shoal cluster` and `shoal node` with real nodes: the examples of their help, what happens to what
# is in the way, and that nothing stays behind.
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$(dirname "$0")/cli.sh" "$1"
leave() { shoal cluster down --timeout 2s >/dev/null 2>&1; rm -rf "$folder"; }

# Examples in an order that works: up (twice: idempotent), look, drain, down.
for verb in "cluster up" "cluster status" "node status" "node drain" "cluster down"; do
    while read -r line; do expect 0 "" $line; done < <(shoal $verb --help | sed -n '/^examples:/,$p' | grep '^  shoal ')
done
[ ! -e state ] && ok || bad "down leaves $(ls state)"

expect 0 "3 of them started now" shoal cluster up
running=$(pids)
[ "$(wc -w <<<"$running")" = 3 ] && ok || bad "not three pids: $running"
expect 0 "0 of them started now" shoal cluster up
[ "$(pids)" = "$running" ] && ok || bad "the second up replaced nodes"
expect 0 "serving" shoal cluster status
expect_json shoal cluster status
[ "$(shoal cluster status -o json | grep -c '"state":"serving"')" = 3 ] && ok || bad "not three serving"
expect 0 "draining" shoal node drain n2
[ "$(shoal node status n2 -o json | grep -c '"state":"draining"')" = 1 ] && ok || bad "n2 does not say that it drains"

# A killed node is seen, and started again alone.
victim=$(cut -d' ' -f1 state/n3.pid); kill -9 "$victim"; until_gone "$victim" || bad "n3 survives"
expect 4 "2 of 3 nodes answer" shoal cluster status
expect 0 "1 of them started now" shoal cluster up
expect 0 "1 nodes drain and take no new blocks" shoal cluster up

# A pid that another process has now is not touched.
tail -f /dev/null & other=$!
cp state/n1.pid keep; echo "$other 1" >state/n1.pid
expect 1 "is in use" shoal cluster up
cp keep state/n1.pid
running=$(pids)
expect 0 "3 nodes stopped" shoal cluster down
until_gone $running && ok || bad "nodes live after down"
[ -n "$(alive $other)" ] && ok || bad "down killed a stranger"
kill "$other"

# A node that cannot start takes those started with it back down.
port=$(sed -n 's/.*n2, data: 127.0.0.1:\([0-9]*\).*/\1/p' cluster.yaml)
python3 -c "import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', $port)); s.listen(); print('up', flush=True)
import signal; signal.pause()" >held & holder=$!
for i in $(seq 100); do grep -q up held && break; wait_a_little; done
expect 1 "n2: data: 127.0.0.1:$port is in use by another program" shoal cluster up
kill "$holder"; wait "$holder" 2>/dev/null
[ -z "$(pids)" ] && ok || bad "a failed up leaves nodes"

# What the file says of the network holds for the nodes too: a client over plain TCP finds them.
sed -i 's/^replicas: 2/replicas: 1\nnetwork: {tcp: true}\nclient: {put_deadline: 3s}/' cluster.yaml
expect 0 "3 of them started now" shoal cluster up
expect 0 "tokens/s" shoal bench decode --model "$root/tests/bench/geometry/tiny" --contexts 2K --batch 1 \
    --runs 1 --steps 2 --warm 0 --quiet --cluster cluster.yaml
expect 0 "3 nodes stopped" shoal cluster down
finish
