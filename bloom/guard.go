package bloom

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// MaxLag is how old a guard's knowledge of the fleet's announcements may be: with nothing read from the store for longer, nothing is
// absent. It is half the life of the marker that an announcement leaves in Redis (10 s), so whoever reads Redis before the filter
// meets either the marker or a filter that has the row. It is measured on the monotonic clock: a machine that was suspended as a whole
// does not notice, and may be behind until the next CatchUp.
const MaxLag = 5 * time.Second

var (
	// ErrBuilding is what Build fails with while another Build of the same guard runs.
	ErrBuilding = errors.New("bloom: a build is under way in this process")
	// ErrNoSnapshot is what Adopt fails with where no filter was built yet, or its snapshot is gone.
	ErrNoSnapshot = errors.New("bloom: no snapshot is stored")
	// ErrBehind is what Adopt, CatchUp and Build fail with when announcements are lost which the filter would need: the filter
	// cannot be believed, and a new build is due.
	ErrBehind = errors.New("bloom: announcements that the filter needs are lost")
)

// Store keeps what a fleet shares of its filter: the snapshot, and the announcements of new rows in the order in which they came.
// A cursor names an announcement; it is opaque here. Implementations MUST be safe for concurrent calls.
type Store interface {
	// BeginFilter makes the store keep announcements from now on, if it does not yet, and returns the cursor of the first one
	// within reach before now. whole is false if announcements within reach are known to be lost.
	BeginFilter(ctx context.Context, reach time.Duration) (cursor string, whole bool, err error)
	// SaveFilter stores a snapshot that holds all announcements up to cursor, and tells the fleet.
	SaveFilter(ctx context.Context, cursor string, snapshot []byte) error
	// LoadFilter returns the snapshot stored last, and its cursor; a nil snapshot if there is none.
	LoadFilter(ctx context.Context) (snapshot []byte, cursor string, err error)
	// Announced returns the keys announced from cursor on, some at a time, and the cursor to go on with; the same cursor means that
	// there was nothing more when the call began. The announcement at cursor itself may be among them. whole MUST be false if any
	// announcement after cursor may be lost: keys and next then mean nothing.
	Announced(ctx context.Context, cursor string) (keys []string, next string, whole bool, err error)
}

// State is what a guard's filter is worth.
type State uint8

// The states, in the order in which a guard usually meets them.
const (
	Unbuilt  State = iota // there never was a filter here: everything passes
	Believed              // what the filter says is absent is absent
	Lagging               // the announcements were not read for MaxLag: everything passes until CatchUp succeeds
	Doubted               // announcements are lost, or Doubt was called: everything passes until the next Build or Adopt
)

func (s State) String() string {
	switch s {
	case Unbuilt:
		return "unbuilt"
	case Believed:
		return "believed"
	case Lagging:
		return "lagging"
	case Doubted:
		return "doubted"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Guard says which keys are certainly absent from a source, and never says it in doubt. All methods may be called concurrently;
// Absent takes no lock.
//
// What makes "absent" certain: every row was in the scan, or was announced no longer than Reach before the scan began, or later.
// So all writers of new rows must announce them, first, to all processes; rows that come in unannounced are called absent until
// the next build.
//
// Lock order: turn, mu, a filter's own lock.
type Guard struct {
	options Options
	started time.Time // confirmed moments count from here, on the monotonic clock

	belief   atomic.Pointer[belief] // nil: everything passes
	doubted  atomic.Bool            // says only why there is no belief
	building atomic.Bool

	// turn is held by who changes which filter is believed, while it reads the store: one at a time, so that an older snapshot
	// never replaces a newer filter. It is a channel because waiting for it ends with a context.
	turn chan struct{}

	mu       sync.Mutex // guards what follows, and is held to move belief
	log      announcedLog
	incoming map[adder]struct{} // filters that will be believed later: additions go to them as well
}

// adder is a filter, or what becomes one.
type adder interface{ Add(key string) }

// belief is a filter that is believed, and why.
type belief struct {
	filter    *Filter
	shared    bool         // its announcements come through a store
	confirmed atomic.Int64 // when the store was last asked and had nothing more, since Guard.started
	cursor    string       // up to which announcements are in filter; changed only by who holds the turn
}

// NewGuard returns a guard without a filter: everything passes. The error names all mistakes in o.
func NewGuard(o Options) (*Guard, error) {
	o, err := o.check()
	if err != nil {
		return nil, err
	}
	return &Guard{options: o, started: time.Now(), turn: make(chan struct{}, 1), incoming: map[adder]struct{}{}}, nil
}

// Absent reports whether the source certainly has no row of this key: only a believed filter says so. It takes no lock and
// allocates nothing.
func (g *Guard) Absent(key string) bool {
	b := g.belief.Load()
	return b != nil && !b.filter.MayContain(key) && g.current(b)
}

// current reports whether b's knowledge of the announcements is young enough. Asked after the filter, because only an absent key
// needs the clock.
func (g *Guard) current(b *belief) bool {
	return !b.shared || time.Since(g.started)-time.Duration(b.confirmed.Load()) <= MaxLag
}

// Add makes keys no longer absent, from when it returns: in the filter, in one that is being built or fetched, and in one whose
// building begins within Reach. It is called for what this process announces and for what it hears of the others'. Now and then
// it takes as long as copying the filter (see [Filter.Add]).
func (g *Guard) Add(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.log.add(time.Now(), keys...)
	if b := g.belief.Load(); b != nil {
		addAll(b.filter, keys)
	}
	for a := range g.incoming {
		addAll(a, keys)
	}
}

func addAll(a adder, keys []string) {
	for _, key := range keys {
		a.Add(key)
	}
}

// Doubt lets everything pass until the next Build or Adopt: for whoever saw the filter call a row absent that exists.
func (g *Guard) Doubt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.doubtLocked(g.belief.Load())
}

// doubtLocked ends the belief b, unless another has taken its place.
func (g *Guard) doubtLocked(b *belief) {
	if b != nil && g.belief.CompareAndSwap(b, nil) {
		g.doubted.Store(true)
	}
}

// Believed reports whether Absent says anything now.
func (g *Guard) Believed() bool { return g.State() == Believed }

// State returns what the guard's filter is worth now.
func (g *Guard) State() State {
	b := g.belief.Load()
	switch {
	case b != nil && g.current(b):
		return Believed
	case b != nil:
		return Lagging
	case g.doubted.Load():
		return Doubted
	}
	return Unbuilt
}

// Stats returns the believed filter's size and fill; only the capacity asked for if there is none.
func (g *Guard) Stats() Stats {
	if b := g.belief.Load(); b != nil {
		return b.filter.Stats()
	}
	return Stats{Capacity: g.options.Capacity}
}

// Adopt fetches the stored snapshot, brings it up to date and believes it: at the start, and when the fleet hears that a new one
// stands. It fails with ErrNoSnapshot, ErrSnapshot, ErrBehind or the store's error; the filter believed until then stays.
// It waits for a CatchUp or the end of a Build that is under way. A snapshot that is already in use here is only brought up to date.
//
// The race: 1. A snapshot is fetched. 2. A row is announced: to the store after the snapshot's cursor, and perhaps to Add here.
// 3. The snapshot is believed. Closed because Add's log of the last minute goes into the snapshot and Add itself reaches it from
// then on, and because the store is read from the snapshot's own cursor until nothing more comes; what is announced after that
// last reading is the race of every filter: see MaxLag.
func (g *Guard) Adopt(ctx context.Context, st Store) error {
	if err := g.take(ctx); err != nil {
		return err
	}
	defer g.give()
	data, cursor, err := st.LoadFilter(ctx)
	if err != nil {
		return fmt.Errorf("bloom: fetching the snapshot: %w", err)
	}
	if data == nil {
		return ErrNoSnapshot
	}
	if b := g.belief.Load(); b != nil && b.shared {
		if s, ok := snapshotSeed(data); ok && s == b.filter.seed {
			return g.catchUp(ctx, st, b)
		}
	}
	f, err := ReadSnapshot(data)
	if err != nil {
		return err
	}
	g.receive(f)
	defer g.dismiss(f)
	next := &belief{filter: f, shared: true, cursor: cursor}
	if err := g.follow(ctx, st, next, f); err != nil {
		return err
	}
	g.believe(f, func() *belief { return next })
	return nil
}

// CatchUp adds what the fleet announced since the last time: at every heartbeat, and after a gap of the bus. One round trip where
// nothing was announced. If announcements are lost (ErrBehind), the filter is doubted from then on; another error leaves things
// as they are, until MaxLag is over. It does nothing without a filter, or for one that was built without a store.
func (g *Guard) CatchUp(ctx context.Context, st Store) error {
	if err := g.take(ctx); err != nil {
		return err
	}
	defer g.give()
	b := g.belief.Load()
	if b == nil || !b.shared {
		return nil
	}
	return g.catchUp(ctx, st, b)
}

func (g *Guard) catchUp(ctx context.Context, st Store, b *belief) error {
	err := g.follow(ctx, st, b, b.filter)
	if errors.Is(err, ErrBehind) {
		g.mu.Lock()
		g.doubtLocked(b)
		g.mu.Unlock()
	}
	return err
}

// follow adds the announcements after b's cursor to a, until the store had no more when it was asked. The caller holds the turn,
// or b is its own.
func (g *Guard) follow(ctx context.Context, st Store, b *belief, a adder) error {
	for {
		asked := time.Since(g.started) // before the question: what is announced while it travels may be missing in the answer
		keys, next, whole, err := st.Announced(ctx, b.cursor)
		switch {
		case err != nil:
			return fmt.Errorf("bloom: reading announcements: %w", err)
		case !whole:
			return ErrBehind
		}
		addAll(a, keys)
		if next == b.cursor {
			b.confirmed.Store(int64(asked))
			return nil
		}
		b.cursor = next
	}
}

// receive gives a the announcements of the last Reach, and all that follow. whole is false if some of the last Reach are not
// known here any more.
func (g *Guard) receive(a adder) (whole bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.incoming[a] = struct{}{}
	return g.log.recall(time.Now(), a.Add)
}

// dismiss ends what receive began.
func (g *Guard) dismiss(a adder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.incoming, a)
}

// believe makes what next returns the guard's belief and takes a, which becomes it, off the incoming ones, at one moment: each Add
// is either before it and reached a, or after it and reaches the believed filter.
func (g *Guard) believe(a adder, next func() *belief) *belief {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.incoming, a)
	b := next()
	g.belief.Store(b)
	g.doubted.Store(false)
	return b
}

func (g *Guard) take(ctx context.Context) error {
	select {
	case g.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *Guard) give() { <-g.turn }
