package bloom

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Adopt believes the stored snapshot, brought up to date: at the start, when the fleet hears that a new one stands, and now and then, since
// such a message may be lost. It fails with ErrNoSnapshot, ErrSnapshot, ErrTooLarge, ErrBehind, ErrDoubted or the store's error; the
// filter believed until then stays, unless it is what is doubted. It waits for a CatchUp or the end of a Build that is under way. A snapshot
// that is in use here, or an older one, is not fetched: what is in use is brought up to date.
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
	generation, doubted, err := st.StandingFilter(ctx)
	if err != nil {
		return fmt.Errorf("bloom: looking for the snapshot: %w", err)
	}
	if b, done, err := g.known(generation, doubted); done {
		return err
	} else if b != nil {
		return g.catchUp(ctx, st, b)
	}
	return g.fetch(ctx, st)
}

// known says what is to be done about the filter that stands, where that needs no look at it: b is brought up to date instead, or it is done.
func (g *Guard) known(generation uint64, doubted bool) (b *belief, done bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b = g.belief.Load(); doubted {
		g.refused = max(g.refused, generation)
		if b != nil && b.generation != 0 && b.generation <= generation {
			g.doubtLocked(b)
		}
	}
	switch {
	case generation == 0:
		return nil, true, ErrNoSnapshot
	case g.older || generation <= g.refused:
		return nil, true, ErrDoubted
	case b != nil && generation <= b.generation:
		return b, false, nil
	case generation == g.unusable.generation:
		return nil, true, g.unusable.why
	}
	return nil, false, nil
}

// unusable is a snapshot that cannot be believed, whatever is announced from now on.
type unusable struct {
	generation uint64
	why        error
}

// fetch is the part of Adopt that moves the whole snapshot.
func (g *Guard) fetch(ctx context.Context, st Store) error {
	data, generation, cursor, err := st.LoadFilter(ctx)
	if err != nil {
		return fmt.Errorf("bloom: fetching the snapshot: %w", err)
	}
	if data == nil {
		return ErrNoSnapshot
	}
	f, err := g.read(data)
	if err != nil {
		g.cannotUse(generation, err)
		return err
	}
	g.receive(f)
	defer g.dismiss(f)
	next := &belief{filter: f, generation: generation, cursor: cursor}
	if err := g.follow(ctx, st, next, f); err != nil {
		if errors.Is(err, ErrBehind) { // what is lost does not come back
			g.cannotUse(generation, err)
		}
		return err
	}
	return g.believe(next)
}

func (g *Guard) cannotUse(generation uint64, why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unusable = unusable{generation, why}
}

// read is the filter of data, if it is whole and no larger than what this guard's Options ask for.
func (g *Guard) read(data []byte) (*Filter, error) {
	f, err := ReadSnapshot(data)
	if err != nil {
		return nil, err
	}
	if own := g.options.size(); uint64(f.state.Load().base.Cap()) > own {
		return nil, fmt.Errorf("%w: %d bits, here %d", ErrTooLarge, f.state.Load().base.Cap(), own)
	}
	return f, nil
}

// CatchUp adds what the fleet announced since the last time, and tells it of a Doubt: at every heartbeat, and after a gap of the bus. One
// round trip where nothing was announced. If announcements are lost (ErrBehind), the filter is doubted from then on; another error leaves
// things as they are, until MaxLag is over. It does nothing without a filter, or for one that was built without a store.
func (g *Guard) CatchUp(ctx context.Context, st Store) error {
	if err := g.take(ctx); err != nil {
		return err
	}
	defer g.give()
	if err := g.tell(ctx, st); err != nil {
		return err
	}
	b := g.belief.Load()
	if b == nil || b.generation == 0 {
		return nil
	}
	return g.catchUp(ctx, st, b)
}

// DoubtStored doubts every filter of the store, known here or not, finished or not: here at once, in the fleet with the next CatchUp that the store takes. Only
// a filter whose build began after that is believed again. It is for whoever saw the store come back with data older than the announcements that are still
// known. Else:
//
//  1. A row is announced and inserted. 2. The store comes back as it was before. 3. A process that starts, or one that finds its place in the
//     announcements gone, fetches the snapshot: to it all announcements are there. 4. The row is called absent.
func (g *Guard) DoubtStored() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.older = true
	if b := g.belief.Load(); b != nil && b.generation != 0 {
		g.doubtLocked(b)
	}
}

// doubtStored is what DoubtStored makes CatchUp do: a filter whose build began now would be the first to be believed again. Until then none is:
//
//  1. The store comes back with older data, and is full: it takes no word that this is doubted. 2. It can be read, so that Adopt finds there a
//     filter to which all announcements are there. 3. A row that was announced since is called absent.
func (g *Guard) doubtStored(ctx context.Context, st Store) error {
	g.mu.Lock()
	older := g.older
	g.mu.Unlock()
	if !older {
		return nil
	}
	_, now, _, err := st.BeginFilter(ctx, 0)
	if err != nil {
		return fmt.Errorf("bloom: doubting what the store brought back: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.older = false
	g.refused, g.untold = max(g.refused, now), max(g.untold, now)
	if b := g.belief.Load(); b != nil && b.generation != 0 && b.generation <= now {
		g.doubtLocked(b)
	}
	return nil
}

// tell stores the word that a filter is doubted, until that is done.
func (g *Guard) tell(ctx context.Context, st Store) error {
	if err := g.doubtStored(ctx, st); err != nil {
		return err
	}
	g.mu.Lock()
	generation := g.untold
	g.mu.Unlock()
	if generation == 0 {
		return nil
	}
	if _, err := st.SaveFilter(ctx, generation, "", nil); err != nil { // not stored: a newer one stands, which is as good
		return fmt.Errorf("bloom: telling that the filter is doubted: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.untold == generation {
		g.untold = 0
	}
	return nil
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

// follow adds the announcements after b's cursor to a, until the store had no more when it was asked: an EndStore says so with its last page, else
// reading would not end while announcements come faster than questions. The caller holds the turn, or b is its own.
func (g *Guard) follow(ctx context.Context, st Store, b *belief, a adder) error {
	confirmed := time.Duration(b.confirmed.Load())
	for {
		asked := time.Since(g.started) // before the question: what is announced while it travels may be missing in the answer
		keys, lags, next, end, whole, err := announcedUntil(ctx, st, b.cursor)
		switch {
		case err != nil:
			return fmt.Errorf("bloom: reading announcements: %w", err)
		case !whole:
			return ErrBehind
		}
		addAll(a, keys)
		if g.belief.Load() == b { // else the believed filter has not read what the feed told of
			g.heardFeed(confirmed, lags)
		}
		b.cursor = next
		if end {
			b.confirmed.Store(int64(asked))
			return nil
		}
	}
}

// announcer is the part of a Store or of a SegmentStore that has the announcements.
type announcer interface {
	Announced(ctx context.Context, cursor string) (keys []string, lags []time.Duration, next string, whole bool, err error)
}

// announcedUntil is AnnouncedUntil of whatever has announcements.
func announcedUntil(ctx context.Context, st announcer, cursor string) (keys []string, lags []time.Duration, next string, end, whole bool, err error) {
	if st, ok := st.(interface {
		AnnouncedUntil(ctx context.Context, cursor string) (keys []string, lags []time.Duration, next string, end, whole bool, err error)
	}); ok {
		return st.AnnouncedUntil(ctx, cursor)
	}
	keys, lags, next, whole, err = st.Announced(ctx, cursor)
	return keys, lags, next, next == cursor, whole, err
}
