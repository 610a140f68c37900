package bloom

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"
)

// memoryStore is a Store in memory, for several guards that play processes. The hooks run at the moments that races need.
type memoryStore struct {
	mu       sync.Mutex
	entries  []storeEntry
	last     int
	trimmed  bool // announcements were dropped from the old end
	snapshot []byte
	cursor   string
	stands   uint64 // generation of snapshot, or of the word that it is doubted
	doubted  bool
	fail     error // every call fails with it
	loads    int   // of whole snapshots

	left  checkpointEntry
	saves []time.Time   // of checkpoints
	takes time.Duration // of saving one

	onSave    func() // before SaveFilter does anything
	afterLoad func() // between LoadFilter's reading and its answer
	onRead    func() // in each Announced, after it read
}

type storeEntry struct {
	id  int
	at  time.Time
	key string
	lag time.Duration // of a change feed; 0: a key
}

// feed is a change feed's word, in the store.
func (s *memoryStore) feed(lag time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.entries = append(s.entries, storeEntry{id: s.last, at: time.Now(), lag: lag})
}

// announce is another process's Announce, which only the store tells of.
func (s *memoryStore) announce(keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		s.last++
		s.entries = append(s.entries, storeEntry{id: s.last, at: time.Now(), key: key})
	}
}

// trim drops what is older than age.
func (s *memoryStore) trim(age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.entries)
	s.entries = slices.DeleteFunc(s.entries, func(e storeEntry) bool { return time.Since(e.at) > age })
	s.trimmed = s.trimmed || len(s.entries) < n
}

// flush loses everything.
func (s *memoryStore) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries, s.snapshot, s.cursor, s.stands, s.doubted, s.left = nil, nil, "", 0, false, checkpointEntry{}
}

// remember returns what brings the store back to what it is now; only the numbers of announcements go on.
func (s *memoryStore) remember() (rollBack func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, snapshot, cursor, stands, doubted, left := slices.Clone(s.entries), s.snapshot, s.cursor, s.stands, s.doubted, s.left
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.entries, s.snapshot, s.cursor, s.stands, s.doubted, s.left = entries, snapshot, cursor, stands, doubted, left
	}
}

func (s *memoryStore) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *memoryStore) BeginFilter(ctx context.Context, reach time.Duration) (string, uint64, bool, error) {
	s.announce("\x00opening")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return "", 0, false, s.fail
	}
	generation := uint64(time.Now().UnixMilli())<<12 | uint64(s.last)
	whole := !s.trimmed || time.Since(s.entries[0].at) > reach
	for _, e := range s.entries {
		if time.Since(e.at) <= reach {
			return strconv.Itoa(e.id), generation, whole, ctx.Err()
		}
	}
	return "", 0, false, nil
}

func (s *memoryStore) SaveFilter(ctx context.Context, generation uint64, cursor string, snapshot []byte) (bool, error) {
	if s.onSave != nil {
		s.onSave()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return false, s.fail
	}
	if s.stands > generation || s.stands == generation && s.doubted && snapshot != nil {
		return false, nil
	}
	s.snapshot, s.cursor, s.stands, s.doubted = snapshot, cursor, generation, snapshot == nil
	return true, ctx.Err()
}

func (s *memoryStore) StandingFilter(ctx context.Context) (uint64, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return 0, false, s.fail
	}
	return s.stands, s.doubted, ctx.Err()
}

func (s *memoryStore) LoadFilter(ctx context.Context) ([]byte, uint64, string, error) {
	s.mu.Lock()
	data, generation, cursor, err := s.snapshot, s.stands, s.cursor, s.fail
	s.loads++
	s.mu.Unlock()
	if s.afterLoad != nil {
		s.afterLoad()
	}
	if err == nil {
		err = ctx.Err()
	}
	return data, generation, cursor, err
}

func (s *memoryStore) Announced(ctx context.Context, cursor string) ([]string, []time.Duration, string, bool, error) {
	keys, lags, next, whole, err := s.read(cursor)
	if s.onRead != nil {
		s.onRead()
	}
	if err == nil {
		err = ctx.Err()
	}
	return keys, lags, next, whole, err
}

func (s *memoryStore) read(cursor string) (keys []string, lags []time.Duration, next string, whole bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, nil, "", false, s.fail
	}
	id, err := strconv.Atoi(cursor)
	if err != nil {
		return nil, nil, "", false, fmt.Errorf("cursor %q: %w", cursor, err)
	}
	at := slices.IndexFunc(s.entries, func(e storeEntry) bool { return e.id == id })
	if at < 0 {
		return nil, nil, "", false, nil
	}
	page := s.entries[at:min(at+3, len(s.entries))] // small pages, so that tests turn over several
	for i, e := range page {
		switch {
		case e.lag == 0:
			keys = append(keys, e.key)
		case i > 0:
			lags = append(lags, e.lag)
		}
	}
	return keys, lags, strconv.Itoa(page[len(page)-1].id), true, nil
}

// checkpointEntry is what a build has left.
type checkpointEntry struct {
	data       []byte
	generation uint64
	cursor     string
}

func (s *memoryStore) SaveCheckpoint(ctx context.Context, generation uint64, cursor string, data []byte) (bool, error) {
	time.Sleep(s.takes)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saves = append(s.saves, time.Now())
	if s.fail != nil {
		return false, s.fail
	}
	if s.left.generation > generation {
		return false, nil
	}
	s.left = checkpointEntry{data, generation, cursor}
	return true, ctx.Err()
}

func (s *memoryStore) LoadCheckpoint(ctx context.Context) ([]byte, uint64, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, 0, "", s.fail
	}
	if s.left.data == nil || s.stands >= s.left.generation {
		return nil, 0, "", nil
	}
	return s.left.data, s.left.generation, s.left.cursor, ctx.Err()
}

func (s *memoryStore) DropCheckpoint(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = checkpointEntry{}
	return ctx.Err()
}
