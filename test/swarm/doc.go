// Package swarm measures how an image spreads over real, shaped links between network namespaces: the agent's
// exchange against plain HTTP. The test is small; `COLDRACK_BENCH_SWARM=… go test -v ./test/swarm` prints a table.
package swarm
