package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// OK reports whether the run kept every promise.
func (v *Verdict) OK() bool { return len(v.Breaches) == 0 }

// storyLines bounds what is shown of a key's story. Chosen.
const storyLines = 200

// String is the seed, the plan's settings, the breaches, and the story of each key that one is about.
func (v *Verdict) String() string {
	var b strings.Builder
	p := v.Plan
	fmt.Fprintf(&b, "seed %d: %d processes, keys %v, lagging %v, TTL %v, MemoryTTL %v, AbsentTTL %v, MaxStale %v, jitter %v\n",
		p.Seed, p.Processes, p.Keys, p.Lagging, p.TTL, p.MemoryTTL, p.AbsentTTL, p.MaxStale, p.Jitter)
	for _, f := range p.Faults {
		fmt.Fprintf(&b, "fault %v\n", f)
	}
	told := map[string]bool{}
	for _, breach := range v.Breaches {
		fmt.Fprintf(&b, "BROKEN %s: %s\n", breach.Property, breach.Text)
		if breach.Key != "" && !told[breach.Key] {
			told[breach.Key] = true
			b.WriteString(v.History.story(breach.Key))
		}
	}
	fmt.Fprintf(&b, "play it again with SEED=%d\n", p.Seed)
	return b.String()
}

// story is all that is known of a key, in order.
func (h *History) story(key string) string {
	type line struct {
		seq  int64
		text string
	}
	var lines []line
	tell := func(m Moment, format string, args ...any) {
		if m.Seq != 0 {
			lines = append(lines, line{m.Seq, fmt.Sprintf("  %5d %9s  ", m.Seq, short(m.At)) + fmt.Sprintf(format, args...)})
		}
	}
	for _, c := range h.Commits {
		if c.Key == key {
			tell(c.At, "commit of version %d, absent %v, in the replica at %s", c.Version, c.Absent, short(c.Seen))
		}
	}
	for _, l := range h.Loads {
		if l.Key == key {
			tell(l.Begin, "L%d begins in process %d", l.ID, l.Process)
			tell(l.End, "L%d ends: version %d, absent %v, failed %v", l.ID, l.Row.Version, l.Row.Absent, l.Failed)
		}
	}
	for _, w := range h.Writes {
		if w.Key == key || w.Kind == Cleared {
			tell(w.Begin, "S%d begins in process %d: %s", w.ID, w.Process, w.Kind)
			tell(w.End, "S%d ends: %v, covers version %d", w.ID, w.Ack, w.Row.Version)
		}
	}
	for _, r := range h.Reads {
		if r.Key == key {
			tell(r.End, "%v", r)
		}
	}
	for _, n := range h.Notes {
		if strings.Contains(n.Key, "{"+key+"}") || strings.HasSuffix(n.Key, ":gen") && !strings.HasSuffix(n.What, " 0}") {
			tell(n.At, "    Redis: %s: %s", n.Key, n.What)
		}
	}
	slices.SortFunc(lines, func(a, b line) int { return int(a.seq - b.seq) })
	var b strings.Builder
	if n := len(lines) - storyLines; n > 0 {
		fmt.Fprintf(&b, "  (%d lines before)\n", n)
		lines = lines[n:]
	}
	for _, l := range lines {
		b.WriteString(l.text + "\n")
	}
	for _, t := range h.Troubles {
		if t.Key == "" || t.Key == key {
			fmt.Fprintf(&b, "  trouble %s from %s to %s: process %d (0: all), key %q\n", t.Kind, short(t.From), short(t.To), t.Process, t.Key)
		}
	}
	return b.String()
}

func short(d time.Duration) string { return d.Round(10 * time.Microsecond).String() }

func (r *Read) String() string {
	who := fmt.Sprintf("by process %d", r.Process)
	if r.Process == 0 {
		who = "by the tester"
	}
	s := fmt.Sprintf("%s %q %s, asked at %s (%d)", r.Way, r.Key, who, short(r.Begin.At), r.Begin.Seq)
	if r.Last {
		s += ", at rest"
	}
	switch {
	case r.Err != nil:
		return s + fmt.Sprintf(": error %v", r.Err)
	case r.Absent:
		return s + ": absent"
	}
	return s + fmt.Sprintf(": version %d of %s, stale %v", r.Version, r.By, r.Stale)
}

func (w *Write) String() string {
	return fmt.Sprintf("S%d, %s by process %d, %s to %s (%d), %v, covering version %d committed at %s",
		w.ID, w.Kind, w.Process, short(w.Begin.At), short(w.End.At), w.End.Seq, w.Ack, w.Row.Version, short(w.Row.At.At))
}

func (l *Load) String() string {
	return fmt.Sprintf("L%d of %q by process %d, %s to %s", l.ID, l.Key, l.Process, short(l.Begin.At), short(l.End.At))
}
