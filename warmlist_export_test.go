package tiercache

// WarmListDueForTest has the warm list written as if its minute was over.
func WarmListDueForTest[K comparable, V any](c *Cache[K, V]) {
	c.warmDue.Store(0)
	c.wake()
}
