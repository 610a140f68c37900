package layers

import (
	"container/list"
	"time"
)

const (
	// gapWait is how long a missing number may come late. Events of one origin go out on several connections, and in Cluster through
	// several masters, so that they overtake each other. Chosen; not tuned.
	gapWait = time.Second
	// originSilence is how long an origin is remembered that says nothing: six of its beats. Chosen; not tuned.
	originSilence = 30 * time.Second
	// meeting is how long after it began to listen a process has met every origin there was: one beat of each, and what it needs to arrive.
	meeting = (beatEvery + 2) * heartbeat
	// maxOrigins bounds the origins remembered per channel; one more makes the most silent one forgotten. Chosen; not tuned.
	maxOrigins = 10_000
	// maxMissing bounds the numbers awaited per channel; more are a gap at once. Chosen; not tuned.
	maxMissing = 10_000
)

// sequence notices missing events of one channel by their numbers. The zero value is ready for use. Not safe for concurrent use.
//
// What an origin said before it was first heard of may be of before this process listened, or may have been lost:
//
//	1 process A keeps a key; process B is born
//	2 B's first event, of that key, is lost
//	3 A hears B's beat: its newest number is 1
//
// Both look the same, so both are a gap. For a while after the process began to listen all origins are new to it: one gap at the end of that
// time stands for them all.
type sequence struct {
	origins   map[string]*line
	silent    list.List // of *line: the most silent one in front
	late      []hole    // awaited numbers, in the order in which they were noticed; some of them have come meanwhile
	missing   int       // awaited numbers that have not come
	began     time.Time // when the first origin was met
	strangers time.Time // when what new origins had said before becomes a gap; zero: they had said nothing
}

// line is what is known of one origin.
type line struct {
	origin  string
	place   *list.Element
	heard   time.Time
	top     uint64              // the highest number known to be given
	missing map[uint64]struct{} // below top, and not heard
}

// hole is one number that is awaited.
type hole struct {
	line   *line
	number uint64
	until  time.Time
}

// note takes in that origin sent the event number, or with beat that number is the newest that it gave. It reports whether that shows
// a gap at once: more missing than can be awaited.
func (s *sequence) note(origin string, number uint64, beat bool, now time.Time) (gap bool) {
	l := s.origins[origin]
	if l == nil {
		return s.meet(origin, number, beat, now)
	}
	l.heard = now
	s.silent.MoveToBack(l.place)
	if number <= l.top {
		if _, awaited := l.missing[number]; awaited && !beat {
			delete(l.missing, number)
			s.missing--
		}
		return false
	}
	first, last := l.top+1, number // the numbers that nobody heard
	if !beat {
		last--
	}
	l.top = number
	if last < first {
		return false
	}
	if last-first >= uint64(maxMissing-s.missing) {
		s.forgive()
		return true
	}
	for n := first; n <= last; n++ {
		if l.missing == nil {
			l.missing = make(map[uint64]struct{})
		}
		l.missing[n] = struct{}{}
		s.missing++
		s.late = append(s.late, hole{l, n, now.Add(gapWait)})
	}
	return false
}

// meet begins the line of a new origin. It reports a gap if that made one forgotten of which events are still awaited.
func (s *sequence) meet(origin string, number uint64, beat bool, now time.Time) (gap bool) {
	if s.origins == nil {
		s.origins = make(map[string]*line)
		s.began = now
	}
	if (number > 1 || beat && number > 0) && s.strangers.IsZero() {
		s.strangers = now.Add(gapWait)
		if met := s.began.Add(meeting); met.After(s.strangers) {
			s.strangers = met
		}
	}
	if len(s.origins) >= maxOrigins {
		gap = s.forget(s.silent.Front())
	}
	l := &line{origin: origin, heard: now, top: number}
	l.place = s.silent.PushBack(l)
	s.origins[origin] = l
	return gap
}

// due returns the moment at which what is awaited becomes a gap; zero if nothing is.
func (s *sequence) due() time.Time {
	for len(s.late) > 0 {
		h := s.late[0]
		if _, awaited := h.line.missing[h.number]; awaited {
			if s.strangers.IsZero() || h.until.Before(s.strangers) {
				return h.until
			}
			return s.strangers
		}
		s.late = s.late[1:]
	}
	s.late = nil
	return s.strangers
}

// gap reports whether that moment has come. Then none is awaited any more: one answer to a gap covers them all.
func (s *sequence) gap(now time.Time) bool {
	due := s.due()
	if due.IsZero() || now.Before(due) {
		return false
	}
	s.forgive()
	return true
}

// sweep forgets the origins that have said nothing for originSilence. Nothing is awaited of them: that became a gap long before.
func (s *sequence) sweep(now time.Time) {
	for e := s.silent.Front(); e != nil && now.Sub(e.Value.(*line).heard) >= originSilence; e = s.silent.Front() {
		s.forget(e)
	}
}

// forgive stops awaiting.
func (s *sequence) forgive() {
	for _, h := range s.late {
		h.line.missing = nil
	}
	s.late, s.missing, s.strangers = nil, 0, time.Time{}
}

func (s *sequence) forget(e *list.Element) (awaited bool) {
	l := s.silent.Remove(e).(*line)
	delete(s.origins, l.origin)
	awaited = len(l.missing) > 0
	s.missing -= len(l.missing)
	l.missing = nil
	return awaited
}
