// Package layers has the tiers of the cache and what they keep: the entry, its form on the wire, the local tier (ristretto under a
// policy of our own) and the shared tier (Redis: its scripts, the batcher, the bus).
package layers
