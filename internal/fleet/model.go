package fleet

import (
	"sync"
	"time"
)

// model is the source of a run: every version of every row, and a replica that shows each commit some time after it.
type model struct {
	h   *History
	lag func(key string, version int) time.Duration // how long after its commit the replica has a version; nil: at once

	mu   sync.Mutex
	rows map[string][]Commit // by key, by version
}

// newModel returns a database whose keys have version 0 since before the run: a row, or none where absent says so.
func newModel(h *History, lag func(string, int) time.Duration, keys []string, absent func(key string) bool) *model {
	d := &model{h: h, lag: lag, rows: map[string][]Commit{}}
	for _, key := range keys {
		c := Commit{Key: key, Absent: absent(key)}
		d.rows[key] = []Commit{c}
		h.commit(c)
	}
	return d
}

// commit changes a row, or deletes it, and returns its new version.
func (d *model) commit(key string, absent bool) Commit {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.commitLocked(key, absent)
}

// insert is commit of a row that is not there; false: it is.
func (d *model) insert(key string) (Commit, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if all := d.rows[key]; !all[len(all)-1].Absent {
		return Commit{}, false
	}
	return d.commitLocked(key, false), true
}

func (d *model) commitLocked(key string, absent bool) Commit {
	c := Commit{Key: key, Version: len(d.rows[key]), Absent: absent, At: d.h.Now()}
	c.Seen = c.At.At
	if d.lag != nil {
		c.Seen += d.lag(key, c.Version)
	}
	c.Seen = max(c.Seen, d.rows[key][c.Version-1].Seen) // a replica applies in order
	d.rows[key] = append(d.rows[key], c)
	d.h.commit(c)
	return c
}

// read is what a load reads: the newest version that the replica has.
func (d *model) read(key string) Commit {
	d.mu.Lock()
	defer d.mu.Unlock()
	all, now := d.rows[key], d.h.Now().At
	for i := len(all) - 1; i > 0; i-- {
		if all[i].Seen <= now {
			return all[i]
		}
	}
	return all[0]
}

// newest is the newest version, wherever it is.
func (d *model) newest(key string) Commit {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.rows[key]
	return all[len(all)-1]
}
