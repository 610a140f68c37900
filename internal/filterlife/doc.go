// Package filterlife plays the life of a filter in a fleet of real processes: rows are announced and inserted without a pause, every process asks
// for committed rows all the time, and meanwhile filters are built while one process is stopped, the stream of announcements is trimmed and
// Redis is flushed. Whoever is told "not found" of a committed row has met a false negative. There is none.
//
// The source is a set in another Redis server, so that all processes see what is committed; nothing that befalls the caches' Redis befalls it.
// Nothing that is read is kept, in either tier, so that every question reaches the filter.
//
// The processes pause between announcement and commit for no fault but their own slowness: what is lost between the two, together with the
// process' own log, is the limit that bloom.Guard.Build names. So the faults come while nobody inserts.
package filterlife
