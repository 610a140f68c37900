// Package consistency has the write side of a cache: DoubleDelete wraps a write between two deletes, Pending keeps the invalidations
// that the shared tier did not take until it does, Windows has the delete windows of a cache without a shared tier.
//
// It speaks keys in their string form and never sees values.
package consistency
