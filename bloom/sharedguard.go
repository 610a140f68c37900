package bloom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/internal/segment"
)

const (
	// segmentLife is how long a segment outlives the last process that renewed it, as a snapshot does.
	segmentLife = 24 * time.Hour
	// openLife bounds what the crash of a builder leaves behind. A scan that gives no row for as long loses its build. Chosen; not tuned.
	openLife = time.Hour
	// oldLife is how long the segments of a filter that is not asked any more are kept, for whoever does not know that yet.
	oldLife = time.Minute
	// announceWithin is how long an announcement may take. The builder reads announcements from a Reach before its beginning: one that
	// is not done by then would reach neither that filter nor the next. Chosen: far less than Reach.
	announceWithin = 10 * time.Second
	// announcedTogether is how many keys are announced at once: some 10,000 bits at a rate of 0.001. Chosen, as the pages of the announcements;
	// not tuned.
	announcedTogether = 1000
)

var (
	// ErrOvertaken is what Build of a SharedGuard fails with when another one began later, or its filter's place in Redis is gone.
	ErrOvertaken = errors.New("bloom: another build has begun since, or Redis has lost this one")
	// ErrSegmentLost is what Build fails with when Redis lost a segment, or a part of what it had acknowledged of one: it was flushed,
	// evicts, or failed over.
	ErrSegmentLost = errors.New("bloom: a segment was lost, or parts of it, while it was filled")
	// ErrSlow is what Announce fails with when it took so long that the announcement may have been missed. Announce again.
	ErrSlow = errors.New("bloom: announcing took too long")
)

// SegmentStore keeps the segments of a name, their head, and the announcements. Implementations MUST be safe for concurrent calls.
type SegmentStore interface {
	// AskSegments returns which layout is served, nil if none, and the replies to asks, nil where there is none. All of it MUST be
	// read after the call began, each segment at one moment. It MUST return within a bounded time.
	AskSegments(ctx context.Context, asks []segment.Ask) (serving []byte, replies [][]int64, err error)
	// EditSegments makes edits, each in one step or not at all. With an error it is unknown which were made.
	EditSegments(ctx context.Context, edits ...segment.Edit) (made []bool, err error)
	// TurnSegments changes the head, in one step.
	TurnSegments(ctx context.Context, t segment.Turn) (h segment.Head, made bool, err error)
	// CountSegment returns how many bits of the segment's bytes from first to last are set; 0 where there is none.
	CountSegment(ctx context.Context, r segment.Ref, first, last int) (set uint64, err error)
	// AnnounceSegments adds keys to the announcements and reads the head, at one moment for the last of them.
	AnnounceSegments(ctx context.Context, keys ...string) (segment.Head, error)
	// BeginFilter and Announced are those of Store.
	BeginFilter(ctx context.Context, reach time.Duration) (cursor string, generation uint64, whole bool, err error)
	Announced(ctx context.Context, cursor string) (keys []string, fed []time.Duration, next string, whole bool, err error)
}

// SharedGuard says which keys are certainly absent from a source, by a filter whose bits are in Redis and in no process: see [Segmented]. It
// says nothing in doubt. Where a Guard must hear of new rows, a SharedGuard asks each time: a row is absent for no process any more once
// Announce of it returned nil in any. All methods may be called concurrently.
//
// What makes "absent" certain: the answer counts only if the filter it is of is served at the moment of the question, and everybody who
// announces finds that out at the same place and sets the row's bits there first.
//
//  1. A reader knows filter F. 2. Redis evicts the head, or G is moved to. 3. A row is announced; its bits go into G, or nowhere. 4. The
//     reader asks the segments of F: absent. Closed because the same question asks whether F is served still.
//
// The limit: what Redis lost although it had acknowledged it. Who announced does it again once the loss is noticed; a row whose announcer died
// before that is called absent until the next build.
type SharedGuard struct {
	options Options
	store   SegmentStore
	asking  lookups

	feed     sharedFeed
	serving  atomic.Pointer[served] // nil: everything passes
	building atomic.Bool

	mu      sync.Mutex // guards what follows, and the moves of serving
	doubted []byte     // a layout that is not believed, whoever serves it
	forgets bool       // no filter is believed that Redis has now, which it does not know yet
	failed  error      // the last error of a question, for Keep to tell
	next    int        // the segment that Keep looks at next
}

// served is the filter that is asked.
type served struct {
	*Segmented
	raw  []byte // the layout as the head has it
	rows atomic.Uint64
	old  atomic.Int64    // when another should be built, Unix ns by the wall clock; 0: not known yet
	lost []atomic.Bool   // by segment: unknown when it was last looked at
	fill []atomic.Uint32 // by segment: of its bits that were looked at, the set ones in 2^-32; 0: none was looked at
}

// NewSharedGuard returns a guard that knows no filter yet: everything passes until Keep found one, or Build made it. The error names all
// mistakes in o.
func NewSharedGuard(o Options, st SegmentStore) (*SharedGuard, error) {
	layout, err := NewSegmented(o)
	if err != nil {
		return nil, err
	}
	g := &SharedGuard{options: layout.Options(), store: st}
	g.asking.throw = g.ask
	return g, nil
}

// Absent reports for each key whether the source certainly has no row of it. One round trip, shared with whoever asks at about the same
// time; none while no filter is known. Whatever goes wrong, and the end of ctx, means false.
func (g *SharedGuard) Absent(ctx context.Context, keys ...string) []bool {
	out := make([]bool, len(keys))
	if g.serving.Load() == nil || len(keys) == 0 {
		return out
	}
	k := g.feed.known()
	answers := g.asking.ask(ctx, keys)
	if !g.feed.young(k) { // by what was known before the question: see Guard.Absent
		return out
	}
	for i, a := range answers {
		out[i] = a == Absent
	}
	return out
}

// ask throws one volley. It outlives who asked: the store's own budget bounds it.
func (g *SharedGuard) ask(keys []string) []Answer {
	answers := make([]Answer, len(keys))
	b := g.serving.Load()
	if b == nil {
		return answers
	}
	questions, asks := b.questions(keys)
	serving, replies, err := g.store.AskSegments(context.Background(), asks)
	if err != nil {
		g.mu.Lock()
		g.failed = err
		g.mu.Unlock()
	}
	if err != nil && len(serving) == 0 {
		return answers
	}
	if !bytes.Equal(serving, b.raw) {
		g.adopt(segment.Head{Serving: serving})
		return answers
	}
	for i, q := range questions {
		answers[i] = q.Answer(replies[i])
		b.lost[q.Segment].Store(answers[i] == Unknown)
	}
	return answers
}

// adopt makes the layout that the head serves the one that is asked; none, where there is none, or it is doubted or cannot be read.
func (g *SharedGuard) adopt(h segment.Head) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.serving.Load()
	if b == nil || !bytes.Equal(b.raw, h.Serving) {
		b = nil
		if layout, err := ParseSegmented(h.Serving); err == nil && !bytes.Equal(h.Serving, g.doubted) && !g.forgets {
			n := layout.Segments()
			b = &served{Segmented: layout, raw: h.Serving, lost: make([]atomic.Bool, n), fill: make([]atomic.Uint32, n)}
		}
		g.serving.Store(b)
	}
	if b != nil && h.Rows > 0 {
		b.rows.Store(h.Rows)
	}
}

// Adopt learns which filter is served, and returns when it came to be: of two, the later one has the greater. 0 if there is none, or it is doubted
// here. One round trip.
func (g *SharedGuard) Adopt(ctx context.Context) (moved uint64, err error) {
	head, _, err := g.store.TurnSegments(ctx, segment.Turn{})
	if err != nil && !errors.Is(err, segment.ErrForeign) {
		return 0, err
	}
	if err := g.expire(ctx, head.Replaced, 0); err != nil {
		return 0, err
	}
	g.adopt(head)
	if g.serving.Load() == nil {
		return 0, nil
	}
	return head.Moved, nil
}

// Announce makes keys absent for no process any more, from when it returned nil: before the inserts of their rows commit. A row must commit within
// Reach of its last Announce. With an error nothing may be inserted yet; announcing again does no harm. Two round trips, of which the
// second goes to every master that has a segment of a key; as many again for each 1,000 keys more, of which some are announced if it fails.
//
// The race: 1. A row is announced: its bits go into the filter that is served. 2. A build begins, and its scan passes the row's place.
// 3. The insert commits. 4. The fleet moves to the new filter. Closed because the announcement is appended to the stream before the head
// is read, at one moment: a build that is not in that head yet reads the stream from a Reach before its beginning.
func (g *SharedGuard) Announce(ctx context.Context, keys ...string) error {
	for some := range slices.Chunk(keys, announcedTogether) {
		if err := g.announce(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

// announce is Announce of so few keys that their bits are set within the time of a script.
func (g *SharedGuard) announce(ctx context.Context, keys []string) error {
	begun := time.Now()
	head, err := g.store.AnnounceSegments(ctx, keys...)
	if err != nil {
		return err
	}
	var edits []segment.Edit
	for _, raw := range [][]byte{head.Serving, head.Building, head.Old} {
		if len(raw) == 0 {
			continue
		}
		layout, err := ParseSegmented(raw)
		if err != nil { // of a later release, whose processes read it
			return fmt.Errorf("bloom: announcing to a filter of another form: %w", err)
		}
		edits = append(edits, layout.additions(keys)...)
	}
	if _, err := g.store.EditSegments(ctx, edits...); err != nil { // one that is not made: its segment is not there, so nobody is told "absent" by it
		return err
	}
	if time.Since(begun) > announceWithin {
		return ErrSlow
	}
	return nil
}

// Keep is to be called each second: it learns which filter is served and what change feeds have told, and by turns looks at the segments and renews
// their expiry. It returns what went wrong, in questions too, since the last call. Three round trips.
func (g *SharedGuard) Keep(ctx context.Context) error {
	g.mu.Lock()
	failed := g.failed
	g.failed = nil
	t := segment.Turn{Layout: g.doubted}
	switch {
	case g.forgets:
		t.How = segment.Forget
	case g.doubted != nil:
		t.How = segment.Drop // the fleet is told by its next question
	}
	g.mu.Unlock()
	asked := g.feed.now()
	head, _, err := g.store.TurnSegments(ctx, t)
	if err != nil {
		return errors.Join(failed, err)
	}
	if t.How == segment.Forget {
		g.mu.Lock()
		g.forgets = false // DoubtAll and Keep are called one at a time
		g.mu.Unlock()
	}
	g.feed.heard(asked, head.Fed, head.Lag)
	g.adopt(head)
	if b := g.serving.Load(); b != nil && bytes.Equal(b.raw, head.Serving) {
		b.old.CompareAndSwap(0, oldSince(time.Now().Round(0).Add(-head.Age)).UnixNano())
	}
	if err := g.expire(ctx, head.Replaced, 0); err != nil {
		return errors.Join(failed, err)
	}
	return errors.Join(failed, g.look(ctx))
}

// expire has the segments of a layout expire after life; at once if that is 0.
func (g *SharedGuard) expire(ctx context.Context, raw []byte, life time.Duration) error {
	if len(raw) == 0 {
		return nil
	}
	layout, err := ParseSegmented(raw)
	if err != nil {
		return nil //nolint:nilerr // of another release: its segments have an expiry of their own
	}
	edits := make([]segment.Edit, layout.Segments())
	for i := range edits {
		edits[i] = segment.Edit{Ref: layout.ref(i), Life: max(life, time.Millisecond)}
	}
	_, err = g.store.EditSegments(ctx, edits...)
	return err
}

// Doubt lets everything pass, here at once and in the whole fleet with the next Keep, until another filter is built: for whoever saw a row called
// absent that exists.
func (g *SharedGuard) Doubt() { g.doubt(g.serving.Load()) }

// DoubtAll is Doubt of whatever filter Redis has now, known here or not, and of one that is being built: for whoever saw Redis come back with data
// older than the announcements that are still known. A build that is under way when the fleet is told ends with ErrOvertaken. It is not called
// concurrently with Keep.
func (g *SharedGuard) DoubtAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.serving.Load(); b != nil {
		g.doubted = b.raw
		g.serving.Store(nil)
	}
	g.forgets = true
}

// Refute says that the source has rows of these keys, whose announcements, if there were any, have returned by now. If the filter calls some of them
// absent it is doubted, as by Doubt; it returns how many. One round trip.
func (g *SharedGuard) Refute(ctx context.Context, keys ...string) (wrong int) {
	b := g.serving.Load()
	for _, absent := range g.Absent(ctx, keys...) {
		if absent {
			wrong++
		}
	}
	if wrong > 0 && !g.doubt(b) {
		return 0 // another filter is asked by now, perhaps by this question already
	}
	return wrong
}

// doubt doubts b if it is asked.
func (g *SharedGuard) doubt(b *served) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b == nil || g.serving.Load() != b {
		return false
	}
	g.doubted = b.raw
	g.serving.Store(nil)
	return true
}

// Believed reports whether Absent says anything now.
func (g *SharedGuard) Believed() bool { return g.State() == Believed }

// State returns what the filter is worth: Unbuilt, Believed, Doubted, or Lagging where it relies on a change feed that is. Of its segments Stats tells
// more.
func (g *SharedGuard) State() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.serving.Load() != nil && g.feed.young(g.feed.known()):
		return Believed
	case g.serving.Load() != nil:
		return Lagging
	case g.doubted != nil || g.forgets:
		return Doubted
	}
	return Unbuilt
}

// Close ends the questions under way and waits for them; from then on everything passes. It touches nothing in Redis.
func (g *SharedGuard) Close() { g.asking.close() }
