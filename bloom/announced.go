package bloom

import "time"

// Reach is how long before a scan's beginning announcements are still added to the filter that is built from it: a row announced
// before the scan may commit after the scan has passed its place, or not yet be on the replica that is scanned. So an announced row
// must commit, and reach the replica that is scanned, within Reach of its last announcement. A minute is an allowance
// for a replica's lag, and twice the time for which an Update keeps an announced key's window open (30 s).
const Reach = time.Minute

// maxLog bounds the announcements remembered here: 4,000 a second for a Reach; about 12 MB and the keys.
const maxLog = 250_000

// announcedLog remembers the keys announced within Reach. Its owner serialises all calls.
type announcedLog struct {
	entries []announced // oldest first, from first on
	first   int
	lost    time.Time // when the youngest entry that had to be dropped was announced
}

type announced struct {
	at  time.Time
	key string
}

func (l *announcedLog) add(now time.Time, keys ...string) {
	l.forget(now)
	for _, key := range keys {
		if len(l.entries)-l.first >= maxLog {
			l.lost = l.entries[l.first].at
			l.drop()
		}
		l.entries = append(l.entries, announced{now, key})
	}
}

// recall visits every key announced within Reach. It returns false if some were announced but are no longer known.
func (l *announcedLog) recall(now time.Time, visit func(key string)) (whole bool) {
	l.forget(now)
	for _, a := range l.entries[l.first:] {
		visit(a.key)
	}
	return l.lost.IsZero() || now.Sub(l.lost) > Reach
}

func (l *announcedLog) forget(now time.Time) {
	for l.first < len(l.entries) && now.Sub(l.entries[l.first].at) > Reach {
		l.drop()
	}
}

// drop forgets the oldest entry. Its place is used again once as many have gone as are left, so a drop costs a constant on average.
func (l *announcedLog) drop() {
	l.entries[l.first] = announced{}
	l.first++
	if l.first*2 >= len(l.entries) {
		l.entries = append(l.entries[:0:0], l.entries[l.first:]...)
		l.first = 0
	}
}
