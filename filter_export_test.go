package tiercache

// DoubtForTest doubts the filter in Redis, as a cache does when Redis comes back with data too old.
func DoubtForTest[K comparable, V any](c *Cache[K, V]) { c.segments.Doubt() }
