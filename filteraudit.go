package tiercache

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/tiercache/tiercache/bloom"
)

// audits draws whether a key that the filter calls absent is loaded all the same, like any other: the keys of one batch are of one class at the
// gate. A row that is found then tells that the filter is wrong: nothing else would.
func (c *Cache[K, V]) audits(why *cause) bool {
	if c.o.FilterAudit < 0 || c.o.FilterAudit < 1 && random() >= c.o.FilterAudit {
		return false
	}
	c.count.filterAudits.Add(1)
	why.audited = true
	return true
}

// foundInSource holds each row that was loaded against the filter: not only those loaded to audit it. Where other processes announce rows,
// a row that the filter lacks is no more than suspect. Of a filter in Redis only what was loaded to audit it is: to ask it costs a round trip.
//
//  1. Another process announces a row and inserts it. 2. It is loaded here, by its marker or as an audit. 3. This process hears of the
//     announcement, which was in the stream before the insert committed. So what the filter still calls absent, once the stream was read to
//     its end, is a row that nobody announced, or a fault.
func (c *Cache[K, V]) foundInSource(id string, why cause) {
	if c.segments != nil && why.audited || c.filter != nil && c.filter.Lacks(id) {
		c.suspects.add(id)
		if c.shared == nil {
			c.refute(c.suspects.take(c.filter.Told))
			c.tellFilter()
			return
		}
		c.wake()
	}
}

// refute doubts the filter if it calls any of these rows absent.
func (c *Cache[K, V]) refute(ids []string) (doubted bool) {
	for _, id := range ids {
		if c.filter.Refute(id) {
			c.count.filterWrong.Add(1)
			doubted = true
		}
	}
	return doubted
}

// suspects are rows that the filter seems to lack. Few are enough: one doubts it.
type suspects struct {
	mu  sync.Mutex
	all []suspect
}

type suspect struct {
	id    string
	found time.Time
}

const maxSuspects = 16 // chosen; not tuned

func (s *suspects) add(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) < maxSuspects {
		s.all = append(s.all, suspect{id, time.Now()})
	}
}

// take returns those that can be judged: that were found when told says that every row was announced by now which was there then. The others wait, for
// a change feed.
func (s *suspects) take(told func(at time.Time) bool) (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(x suspect) bool {
		if !told(x.found) {
			return false
		}
		ids = append(ids, x.id)
		return true
	})
	return ids
}

// filterTold is what was last told of the filter.
type filterTold struct {
	mu    sync.Mutex
	state bloom.State
	due   string
}

// tellFilter tells of the filter's state and of a new one being due: each time either changes, as it is seen at the chores (each second while
// Redis answers), at the end of a build, and where a row was found that it lacks.
func (c *Cache[K, V]) tellFilter() {
	var f interface {
		State() bloom.State
		Due() string
	} = c.filter
	if c.segments != nil {
		f = c.segments
	}
	state, due := f.State(), f.Due()
	c.filterTold.mu.Lock()
	was, wasDue := c.filterTold.state, c.filterTold.due
	c.filterTold.state, c.filterTold.due = state, due
	c.filterTold.mu.Unlock()
	if state == was && due == wasDue {
		return
	}
	switch {
	case state == bloom.Doubted && c.count.filterWrong.Load() > 0:
		c.o.Logger.Error("tiercache: everything passes the filter; it called a row absent that exists, which nobody announced: build it anew",
			"cache", c.o.Name, "filter", state.String(), "due", due)
	case due != "" && due != wasDue:
		c.o.Logger.Warn("tiercache: a new filter should be built", "cache", c.o.Name, "filter", state.String(), "due", due)
	default:
		c.o.Logger.Info("tiercache: the filter's state", "cache", c.o.Name, "filter", state.String(), "due", due)
	}
	if c.o.Hooks.Filter != nil {
		c.o.Hooks.Filter(state.String(), due)
	}
}

// filterStats are the gauges of the filter.
func (c *Cache[K, V]) filterStats(s *Stats) {
	f := c.filter.Stats()
	s.FilterRows, s.FilterSize, s.FilterBytes = f.Added, f.Capacity, f.Bytes
	s.FilterFill, s.FilterRate = millionths(f.Fill), millionths(f.EstimatedRate)
	s.FilterState = uint64(c.filter.State())
	if c.filter.Due() != "" {
		s.FilterDue = 1
	}
}

func millionths(fraction float64) uint64 { return uint64(math.Round(fraction * 1e6)) }
