package fleet

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
)

// record is a history written by hand: of one key, by moments in milliseconds.
type record struct {
	History
	plan *Plan
}

func newRecord() *record {
	p := &Plan{Pace: virtualPace, Processes: 2, Keys: []string{"k"}, TTL: time.Minute, MemoryTTL: time.Minute, AbsentTTL: time.Minute, MaxStale: -1}
	r := &record{plan: p}
	r.Dead = map[int]bool{}
	r.Commits = append(r.Commits, Commit{Key: "k"})
	return r
}

func at(ms int64) Moment { return Moment{Seq: ms, At: time.Duration(ms) * time.Millisecond} }

func (r *record) commit(ms int64, absent bool) {
	c := Commit{Key: "k", Version: len(r.Commits), Absent: absent, At: at(ms), Seen: at(ms).At}
	r.Commits = append(r.Commits, c)
}

// load is a load from one moment to another that read a version.
func (r *record) load(process int, from, to int64, version int) *Load {
	l := &Load{ID: len(r.Loads) + 1, Process: process, Key: "k", Begin: at(from), End: at(to), Row: r.Commits[version]}
	r.Loads = append(r.Loads, l)
	return l
}

// wrote is a write of process 1 from one moment to another that covers a version.
func (r *record) wrote(kind Kind, from, to int64, version int) *Write {
	w := &Write{ID: len(r.Writes) + 1, Kind: kind, Process: 1, Key: "k", Begin: at(from), Since: at(from), End: at(to), Ack: Done, Row: r.Commits[version]}
	r.Writes = append(r.Writes, w)
	return w
}

// got is an answer at a moment, which took a millisecond: of a load or a Set.
func (r *record) got(process int, ms int64, version int, by string) *Read {
	read := &Read{Way: Asked, Process: process, Key: "k", Begin: at(ms), End: at(ms + 1), Version: version, By: by}
	r.Reads = append(r.Reads, read)
	return read
}

func (r *record) gotAbsent(process int, ms int64) {
	r.got(process, ms, 0, "").Absent = true
}

func (r *record) trouble(kind string, process int, from, to int64) {
	r.Troubles = append(r.Troubles, Trouble{Kind: kind, Process: process, Key: "", From: at(from).At, To: at(to).At})
}

// oldAnswer: process 1 loads version 0, writes version 1 and, asked at ms, process reads version 0 again.
func oldAnswer(r *record, process int, ms int64) *Read {
	r.load(1, 10, 20, 0)
	r.commit(30, false)
	r.wrote(Invalidated, 40, 45, 1)
	return r.got(process, ms, 0, "L1")
}

// Property: Judge finds each kind of broken promise in a history that has it, by its name, and nothing in the same history where a limit of the
// promise, or its being kept, makes it a good one.
// Broken by: a condition of judge.go made constant, such as `!l.Begin.before(w.Since)` true, `before != nil && !j.reason(before, l)` false,
// `!j.impaired(r, w)` true, or `!j.History.Dead[w.Process]` true.
func TestJudgeFindsWhatIsBrokenAndNothingElse(t *testing.T) {
	for name, c := range map[string]struct {
		play func(r *record)
		want string // the property; empty: the run is good
	}{
		"P2: old answer in the writing process": {func(r *record) { oldAnswer(r, 1, 50) }, "P2"},
		"asked before the write returned":       {func(r *record) { oldAnswer(r, 1, 44) }, ""},
		"P2: after the write said pending":      {func(r *record) { oldAnswer(r, 1, 50); r.Writes[0].Ack = Pending }, "P2"},
		"P2: another process, event arrived":    {func(r *record) { oldAnswer(r, 2, 50) }, "P2"},
		"another process, event under way":      {func(r *record) { oldAnswer(r, 2, 46) }, ""},
		"another process whose bus is silent":   {func(r *record) { oldAnswer(r, 2, 50); r.trouble(TroubleBus, 2, 0, 100) }, ""},
		"P2: silent for longer than MemoryTTL": {func(r *record) {
			r.plan.MemoryTTL = 100 * time.Millisecond
			oldAnswer(r, 2, 1000)
			r.trouble(TroubleBus, 2, 0, 5000)
		}, "P2"},
		"another process, the write is pending": {func(r *record) { oldAnswer(r, 2, 50); r.Writes[0].Ack = Pending }, ""},
		"P2: pending, and the fleet is at rest": {func(r *record) { oldAnswer(r, 2, 900).Last = true; r.Writes[0].Ack = Pending }, "P2"},
		"pending, and its process died":         {func(r *record) { oldAnswer(r, 2, 900).Last = true; r.Writes[0].Ack = Pending; r.Dead[1] = true }, ""},
		"P2: an older value stands in Redis":    {func(r *record) { oldAnswer(r, 0, 50).Way = Stored }, "P2"},
		"P2: an older value after a Clear":      {func(r *record) { oldAnswer(r, 1, 50); r.Writes[0].Kind, r.Writes[0].Key = Cleared, "" }, "P2"},
		"cleared while another process's bus is cut": {func(r *record) {
			oldAnswer(r, 2, 900)
			r.Writes[0].Kind, r.Writes[0].Key = Cleared, ""
			r.trouble(TroubleCut, 2, 30, 5000)
		}, ""},
		"P2: cleared, the bus cut, and a beat has passed": {func(r *record) {
			oldAnswer(r, 2, 1200)
			r.Writes[0].Kind, r.Writes[0].Key = Cleared, ""
			r.trouble(TroubleCut, 2, 30, 5000)
		}, "P2"},
		"P3: an answer of an older flight":         {func(r *record) { oldAnswer(r, 1, 50); r.Loads[0].End = at(51); r.Reads[0].End = at(52) }, "P3"},
		"P2: lagging row beyond window and lag":    {func(r *record) { lagging(r, 800) }, "P2"},
		"lagging row within window and lag":        {func(r *record) { lagging(r, 400) }, ""},
		"lagging row, its window was evicted":      {func(r *record) { lagging(r, 800); r.trouble(TroubleGuard, 0, 100, 110) }, ""},
		"P4: crashed update beyond window":         {func(r *record) { crashed(r, 700) }, "P4"},
		"crashed update within window":             {func(r *record) { crashed(r, 300) }, ""},
		"crashed update that Redis did not take":   {func(r *record) { crashed(r, 700); r.Writes[0].Held = false }, ""},
		"P6: absent although it was inserted":      {func(r *record) { inserted(r, 700) }, "P6"},
		"absent while it may lag":                  {func(r *record) { inserted(r, 200); r.load(2, 150, 160, 1) }, ""},
		"P6: never absent":                         {func(r *record) { r.gotAbsent(1, 50) }, "P6"},
		"P7: an error although the source is well": {func(r *record) { r.got(1, 50, 0, "").Err = &tiercache.LoadError{Key: "k", Err: errSource} }, "P7"},
		"an error of the source": {func(r *record) {
			r.got(1, 50, 0, "").Err = &tiercache.LoadError{Key: "k", Err: errSource}
			r.trouble(TroubleSource, 0, 0, 60)
		}, ""},
		"P8: a bare error of the source": {func(r *record) {
			r.got(1, 50, 0, "").Err = errors.New("bare")
			r.trouble(TroubleSource, 0, 0, 60)
		}, "P8"},
		"waited for a lease that nobody holds": {func(r *record) {
			r.got(1, 50, 0, "").Err = &tiercache.LoadError{Key: "k", Err: context.DeadlineExceeded}
			r.trouble(TroubleCalls, 2, 0, 10)
		}, ""},
		"waited for another's load that outlived its window": {func(r *record) {
			r.load(2, 60, 400, 0)
			read := r.got(1, 5000, 0, "")
			read.Begin, read.Err = at(50), &tiercache.LoadError{Key: "k", Err: context.DeadlineExceeded}
		}, ""},
		"joined a flight that had waited for another's load": {func(r *record) {
			r.load(2, 60, 800, 0)
			bound := r.plan.LoadTime + r.plan.LeaseTime
			for _, began := range []int64{50, 55} {
				read := r.got(1, 50+bound.Milliseconds()-1, 0, "")
				read.Begin, read.Err = at(began), &tiercache.LoadError{Key: "k", Err: context.DeadlineExceeded}
			}
		}, ""},
		"joined the flight of one who left": {func(r *record) {
			r.load(2, 60, 800, 0)
			read := r.got(1, 50+(r.plan.LoadTime+r.plan.LeaseTime).Milliseconds()-1, 0, "")
			read.Begin, read.Err = at(300), &tiercache.LoadError{Key: "k", Err: context.DeadlineExceeded}
			r.Left = append(r.Left, &Read{Way: Asked, Process: 1, Key: "k", Begin: at(50), End: at(70)})
		}, ""},
		"P7: waited for less than its bound": {func(r *record) {
			r.load(2, 60, 800, 0)
			read := r.got(1, 700, 0, "")
			read.Begin, read.Err = at(55), &tiercache.LoadError{Key: "k", Err: context.DeadlineExceeded}
		}, "P7"},
		"P10: a value that nobody gave":      {func(r *record) { r.load(1, 10, 20, 0); r.got(1, 50, 3, "L1") }, "P10"},
		"P10: a value of no load":            {func(r *record) { r.got(1, 50, 0, "L7") }, "P10"},
		"P13: an answer beyond its life":     {func(r *record) { r.load(1, 10, 20, 0); r.got(1, 61_000, 0, "L1") }, "P13"},
		"P13: marked stale, beyond MaxStale": {func(r *record) { r.load(1, 10, 20, 0); r.got(1, 61_000, 0, "L1").Stale = true }, "P13"},
		"marked stale, and MaxStale allows it": {func(r *record) {
			r.plan.MaxStale = time.Minute
			r.load(1, 10, 20, 0)
			r.got(1, 61_000, 0, "L1").Stale = true
		}, ""},
		"P2: Refresh answers with what was":  {func(r *record) { r.load(1, 10, 20, 0); r.got(1, 50, 0, "L1").Way = Refreshed }, "P2"},
		"P1: loaded twice for nothing":       {func(r *record) { r.load(1, 10, 20, 0); r.load(2, 30, 40, 0) }, "P1"},
		"P1: two loads at once":              {func(r *record) { r.load(1, 10, 20, 0); r.load(2, 15, 40, 0) }, "P1"},
		"loaded again after its life":        {func(r *record) { r.load(1, 10, 20, 0); r.load(2, 61_000, 61_010, 0) }, ""},
		"loaded again after a failure":       {func(r *record) { r.load(1, 10, 20, 0).Failed = true; r.load(2, 30, 40, 0) }, ""},
		"loaded again after an invalidation": {func(r *record) { r.load(1, 10, 20, 0); r.wrote(Invalidated, 22, 25, 0); r.load(2, 30, 40, 0) }, ""},
		"loaded again after its window":      {func(r *record) { r.wrote(Invalidated, 1, 3, 0); r.load(1, 60, 70, 0); r.load(2, 310, 320, 0) }, ""},
		"loaded again after the window of a Refresh that found nothing": {func(r *record) {
			r.commit(5, true)
			r.load(1, 10, 20, 1)
			r.gotAbsent(1, 21)
			r.Reads[0].Way, r.Reads[0].Begin = Refreshed, at(9)
			r.load(2, 60, 70, 1)
			r.load(2, 310, 320, 1)
		}, ""},
		"P1: loaded again within its window":        {func(r *record) { r.wrote(Invalidated, 1, 3, 0); r.load(1, 60, 70, 0); r.load(2, 200, 220, 0) }, "P1"},
		"absent for the first time in each process": {func(r *record) { none(r, 1, 10); none(r, 2, 30) }, ""},
		"P1: absent, and memory knows":              {func(r *record) { none(r, 1, 10); none(r, 1, 30) }, "P1"},
		"absent, and memory has forgotten": {func(r *record) {
			r.plan.MemoryTTL = 200 * time.Millisecond
			none(r, 1, 10)
			none(r, 1, 230)
		}, ""},
		"P1: absent, and another process's load does not make memory forget": {func(r *record) { none(r, 1, 10); none(r, 2, 30); none(r, 1, 50) }, "P1"},
		"P1: absent for the second time, so Redis knows": {func(r *record) {
			r.plan.MemoryTTL = 200 * time.Millisecond
			none(r, 1, 10)
			none(r, 1, 230)
			none(r, 2, 250)
		}, "P1"},
		"loaded again while calls fail": {func(r *record) { r.load(1, 10, 20, 0); r.load(2, 30, 40, 0); r.trouble(TroubleCalls, 2, 25, 35) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecord()
			c.play(r)
			v := Judge(r.plan, &r.History)
			var got []string
			for _, b := range v.Breaches {
				got = append(got, b.Property)
			}
			if c.want == "" {
				require.Empty(t, got, "%v", v)
				return
			}
			require.Contains(t, got, c.want, "%v", v)
			for _, p := range got {
				require.Equal(t, c.want, p, "%v", v)
			}
		})
	}
}

// none is a load of 10 ms that finds no row.
func none(r *record, process int, from int64) { r.load(process, from, from+10, 0).Row.Absent = true }

// lagging: version 1 is committed and invalidated; a load inside the window still reads version 0, and process 1 is answered with it at ms.
func lagging(r *record, ms int64) {
	r.plan.Lagging = true
	r.commit(30, false)
	r.wrote(Invalidated, 40, 45, 1)
	r.load(1, 50, 60, 0)
	r.got(1, ms, 0, "L1")
}

// crashed: process 1 dies in an Update that has committed version 1; process 2 is answered with version 0 at ms.
func crashed(r *record, ms int64) {
	r.load(2, 10, 20, 0)
	r.commit(30, false)
	w := r.wrote(Updated, 5, 0, 1)
	w.Ack, w.Held, w.End = Open, true, Moment{}
	r.trouble(TroubleDeath, 0, 35, 36)
	r.got(2, ms, 0, "L1")
}

// inserted: the row is deleted, announced and inserted; process 2 finds it absent at ms.
func inserted(r *record, ms int64) {
	r.plan.Lagging = true
	r.commit(5, true)
	r.load(2, 10, 20, 1)
	r.commit(110, false)
	r.wrote(Announced, 100, 112, 2)
	r.gotAbsent(2, ms)
}
