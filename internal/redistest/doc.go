// Package redistest gives tests Redis servers of their own: real redis-server processes from PATH on free ports of the loopback
// interface, without persistence, gone when the test is: one server, also with replicas; a cluster of three masters, also with
// replicas; a master and its replicas under the eyes of three sentinels.
//
// They fail as real ones do: killed, stopped, flushed, read-only, cut off from their clients, replaced by a replica, a slot half moved.
//
// A test that kills, stops or configures its server takes one of its own (Start, StartReplica, StartCluster, StartSentinel); all
// others share one for the whole test binary (Shared, SharedCluster) and keep apart by their names (Name). Nobody flushes a shared one.
//
// Where redis-server is missing, Shared gives an embedded imitation (miniredis), which knows neither processes nor a cluster;
// whatever needs the real one is skipped and says how to install it. With TIERCACHE_REQUIRE_REDIS=1 a missing server is a failure.
// TIERCACHE_SKIP_LOG names a file to which each skip adds a line, since `go test` hides the reasons of skips.
//
// Every test package that uses these servers runs its tests through Main, which ends the shared servers and looks for leaked
// goroutines.
package redistest
