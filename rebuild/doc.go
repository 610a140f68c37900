// Package rebuild decides who may rebuild an entry, and when: Flight lets the callers of one process share one rebuild of a key,
// Gate and Loads bound and time the calls of the source, Obtain and Keep get and hold the lease by which the fleet shares one.
//
// It never sees what is rebuilt: results are of any type, and the lease is the caller's own (Claim).
//
// Mutex, RWMutex and Semaphore are locks by name over processes, which serve on their own. They stand on a Backend, of which RedisBackend is one.
package rebuild
