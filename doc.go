// Package tiercache is a read-through cache for rows of a database: this process's memory over Redis over the source. It exists so that
// the database never feels what happens to the cache: a hot key that expires is loaded once (stampede), rows that do not exist are not asked
// for (penetration), keys do not expire together and loads are bounded when Redis is gone (avalanche), and what a write changed is not
// answered any more (stale data).
//
// [New] opens a [Cache]; [Cache.Get] reads; [Cache.Update] wraps a write, [Cache.Invalidate] follows one. The way of one key stands in
// cache.go, from top to bottom. The rooms are layers (the tiers), rebuild (who may load, and when), bloom (which rows exist) and
// consistency (the write side); docs/architecture.md has a picture.
//
// # Guarantees
//
// Each is kept by the tests named behind it, on real Redis where Redis is part of it, standalone and Cluster. Where Redis appears, the
// client of layers.NewRedis must ask masters only, and its user must be allowed to subscribe.
//
//	P1  Between two invalidations a key is loaded once in the fleet, for each life of its value (a hot key's is replaced from RefreshAhead
//	    of it on), while Redis is reachable and the process that loads lives and renews its lease; one more load within LeaseTime after it died. Without Redis: once a process, never more at once than the gate.
//	    Limits: a guard evicted by Redis, a holder paused past its lease, and a load that began in a delete window and outlived it each
//	    let one more load begin. For about six seconds after a Redis master came back (longer after repeated outages) keys that memory
//	    does not have and whose turn to be read there has not come are loaded once a process. A key without a row is loaded once by each
//	    process at most before Redis is told, and once more then (Options.AbsentMisses; processes that ask at once share one load).
//	    TestOneLoadPerKeyInTheFleet, TestWaitersAreWokenByTheEvent, TestDeadHolderIsReplacedWithinTheLease,
//	    TestRenewedLeaseOutlivesLongLoads, TestStampedeLoadsOnce, TestLoadsWithoutRedisAreOncePerProcessAndGated,
//	    TestKilledProcessIsReplacedWithinTheLease, TestLeaseThatAHungRedisGrantsLateIsGivenBack, TestFleetKeepsItsPromises,
//	    TestOneProcessRebuildsAHotKeyAhead, TestAbsentKeyThatManyProcessesAreAskedForIsToldToRedis,
//	    TestProcessesThatWaitForAnAbsentKeyShareOneLoad, TestLateRebuildFindsWhatMemoryKeptMeanwhile
//	P2  After Invalidate, Update or Set returned nil, nothing loaded before is stored in Redis, nor answered to a Get that begins
//	    afterwards: in this process at once, in another once the event arrived there.
//	    Limits: with the bus silent, until MemoryTTL, longer only for answers marked stale while Redis or the source fails. A Get that
//	    waits already may be given the older value. After a failover that lost the invalidation: until the process that sent it has
//	    noticed, two heartbeats (2 s), and repeated it; if that process died too, the value's TTL. DeleteWindow must be longer than the
//	    lag of the replicas that the loader reads. With HotCopies: where Redis lost the note that a key has copies,
//	    5 s, and MemoryTTL in a process that read a copy then.
//	    TestOlderLoadIsRefusedAfterInvalidate, TestDeleteBetweenFillAndPutIsNotKept, TestRefusedFillIsNotKeptInMemory,
//	    TestReadBeforeAnEventIsNotKept, TestSetIsNotOvertakenByAnOlderLoad, TestInvalidateOvertakesASet,
//	    TestClearRefusesWhatWasLoadedBefore, TestUpdateIsSeenByAll, TestProtocol, TestInvalidationsAreRepeatedAfterAFailover,
//	    TestFailoverBetweenAScriptAndItsReplyRepeatsTheKey, TestLostInvalidationIsPendingBeforeMemoryIsTrusted,
//	    TestProcessStoppedBeyondItsLeaseBringsNothingBack, TestCopyReadBetweenEventAndDropIsForgotten, TestStormWithCopies
//	P3  A Get that begins after Invalidate, Update or Set returned, nil or error, joins no older load. Limit: in the same process.
//	    TestGetAfterInvalidateDoesNotJoinOlderLoad, TestFlightBegunInsideInvalidateIsNotJoined,
//	    TestLoadBegunBeforeAWriteIsNeitherKeptNorJoined
//	P4  A crash anywhere in Update leaves staleness of at most DeleteWindow plus the replica lag after the commit; nobody has to do
//	    anything. Limits: Redis took the first delete; the commit takes effect within 30 s of the last renewal. A crash between a commit
//	    and a plain Invalidate leaves the old value for its TTL. Until the write has ended, or 30 s after its process died, what is
//	    loaded lives for DeleteWindow.
//	    TestCrashInUpdateLeavesOneDeleteWindow, TestFillFromInsideTheWindowDoesNotOutliveIt,
//	    TestWhatIsLoadedInsideTheDeleteWindowIsGoneByItsEnd, TestWhatIsLoadedOutOfTurnIsKeptBriefly,
//	    TestUpdateUnderWayIsPendingAfterAFailover, TestOverlappingUpdatesArePendingUntilTheLastHasEnded
//	P5  A gap in the events is noticed: by a lost connection at once, by silence within 2 s, by a missing number within 6 s. From then
//	    on memory put before it is asked again from Redis.
//	    TestMissedEventIsNoticed, TestLostConnectionIsDeafUntilTheSubscriptionStandsAgain, TestSkippedNumberIsNoticed,
//	    TestMissedEventIsNoticedOnAFullRedis
//	P6  Not found is a result: kept for AbsentTTL, in Redis from a process's second miss of the key on (Options.AbsentMisses), removed by Set,
//	    Announce and Invalidate. The filter's "absent" is never kept.
//	    Limits: a row that is inserted without Announce, Update or Invalidate is not found until AbsentTTL. With a filter only Announce helps: without it
//	    a row is not found until an audit finds it, or the filter's next build.
//	    TestNotFoundIsAResult, TestSecondMissIsToldToRedis, TestInsertAfterNotFoundIsSeen, TestFilterAnswerIsNotKept, TestAnnouncedRowIsFoundEverywhere,
//	    TestFleetNeverCallsAnInsertedRowAbsent, TestLagIsJudgedByWhatWasKnownBeforeTheQuestion,
//	    TestNoFalseNegativeThroughTheLifeOfAFilter, TestNoFalseNegativeWhoeverGoesOnWithABuildInRedis,
//	    TestOlderFilterThatRedisBringsBackIsNotBelieved, TestOlderDataIsDoubtedAlsoWhereTheStoreIsFull,
//	    TestReadingAnnouncementsEndsHoweverFastTheyCome, TestManyRowsAreAnnouncedToAFilterInRedisInParts
//	P7  Redis down, hung, read-only, full or flushed: Get goes on answering from memory, stale, or by loads behind the gate; a Redis error
//	    is never returned from Get. Invalidations are queued (10,000 keys, then all), the caller is told by ErrPending, and a queued key is
//	    not read from Redis before its invalidation got there. When Redis is back, writes go there at once and reads key by key, within
//	    about six seconds; what memory holds from before is asked for first. While the gate is full, keys that nobody has a copy of are
//	    loaded before those that can be answered by one. Limit: the queue dies with its process.
//	    TestRedisKilledReadsGoOn, TestRedisHungReadsGoOn, TestReadOnlyRedis, TestFullRedis, TestFlushedRedis,
//	    TestQueuedInvalidationIsReplayedBeforeTheKeyIsRead, TestPendingOverflowMovesTheGeneration, TestDoubtfulMemoryIsAskedAgain,
//	    TestReadsComeBackToRedisInTurns, TestWritesDoNotWaitForATurn, TestFlushIsToldToEveryProcess, TestNothingThatBefallsRedisIsFelt,
//	    TestStorm, TestKeyWithACopyLetsGoFirstWhoHasNone, TestKeyWithACopyInRedisLetsGoFirstWhoHasNone
//	P8  Source down: the stale copy is answered up to MaxStale, counted (Stats.StaleErrors) and told to Hooks; then a *LoadError with the
//	    cause. A key that failed twice in a row rests for 100 ms, doubled up to 1 s. When half of at least 20 loads within 10 s failed no
//	    key is loaded for 1 s, doubled up to 5 s (ErrBreakerOpen in the *LoadError); then three loads at a time find out.
//	    TestStaleIfErrorUpToMaxStale, TestStaleIsAnsweredWhileTheSourceFails, TestFailingKeyBacksOffFromTheSecondFailure,
//	    TestSharedBackOff, TestFailingSourceIsAskedNoMore, TestRefusedLoadGivesItsLeaseBack, TestStormOfTheSource
//	P9  A cancelled or expired caller leaves at once and harms no one else; a panic or Goexit of a loader is an error for those who wait
//	    and harms no one else; so is a panic of Options.Clone for who is to be given that value.
//	    TestCancelledCallerHarmsNoOne, TestLoaderPanicHarmsNoOneElse, TestCallersLeaveAtTheirOwnEndAndTheLoadGoesOn,
//	    TestLoaderThatPanicsOrEndsItsGoroutineHarmsNobody, TestPanickingHookEndsNothing,
//	    TestPanicOfCloneIsItsCallersError, TestPanicOfCloneHarmsNoOtherKey, TestPanicOfCloneLeavesNothingOlderInMemory
//	P10 What cannot be read in Redis (truncated, foreign, of another schema, too large) is a miss that repairs itself once.
//	    TestUnreadableEntryIsRepairedOnce, TestUnreadableEntryThatComesBackDoesNotHoldUpTheLoad, FuzzParseEnvelope
//	P11 Everything is bounded: bytes, goroutines, queues, waiters; nothing in Redis is without expiry. Close is idempotent and leaves no
//	    goroutine behind but loaders that ignore their context, which its error counts; calls after it return ErrClosed.
//	    TestMemoryAndQueuesAreBounded, TestNothingIsAskedForWhoHasLeft, TestNothingInRedisIsWithoutExpiry, TestKeysThatAreAskedForOnceAddNoKeyToRedis, TestCloseWithRedis, TestCloseUnderTraffic,
//	    TestEveryCallAfterCloseIsErrClosed
//	P12 A key or value from outside does no harm: keys are escaped, those over 200 bytes are hashed and compared in full, over 8 KiB refused;
//	    encoded values are limited to 1 MiB; keys do not appear in error texts, hooks or logs.
//	    TestHostileKeysAreHarmless, TestValueTooLargeStaysInMemory, TestErrorTextsHoldNoKeys, TestMarkersAreNotValues,
//	    FuzzEscapeIsInjective
//	P13 A life is what it says: jitter only shortens, to the millisecond; memory never outlives what Redis kept; nothing depends on two
//	    machines' clocks agreeing. Limits: Redis itself expires by its master's clock, so a failover to a slower one lengthens lives by
//	    the difference; within 5 ms after a process was stopped and continued an entry may be answered past its end; while the cache is
//	    cold (see Avalanche) a key's first life may be as short as a tenth of TTL; a copy (HotCopies) lives by its own master's clock, so
//	    that memory may keep what it read there longer, by what the masters' clocks differ.
//	    TestMemoryNeverOutlivesRedis, TestLivesInRedis, TestLivesAreExact, TestJitterOnlyShortensAndSpreads, TestShortLivesAreJitteredMore,
//	    TestKeysLoadedTogetherDoNotEndTogether, TestColdSpreadIsOnceAKey, TestColdSpreadWhereRedisIsEmpty, TestExpiryIsExact
//
// # Keys
//
// A key's identity in every tier is its string form: Options.KeyString; else strings and integers by kind (their String method is ignored);
// else encoding.TextMarshaler; else fmt.Stringer, which must tell different keys apart. Other types are an error of New.
//
// Options.ValidKey refuses keys that no row can have (an id below one, a text that is no UUID) before anything is looked up: reads answer
// ErrNotFound and ErrInvalidKey in one error, GetMany leaves them out, Refresh and writes return ErrInvalidKey and do nothing. Get asks it
// only where memory has no fresh answer. It is called concurrently, must answer the same key alike and not block; a key it panics on passes.
//
// # Values
//
// What a loader or Set gives is shared by all callers and by memory: it must not be changed, or Options.Clone be given. A nil pointer, an
// empty string and an empty slice are values; only ErrNotFound says that there is none. A V of interface type, or with unexported fields,
// comes back from Redis as the Codec makes it. A value that cannot be encoded or is too large is answered, kept in memory only and counted.
//
// # Avalanche
//
// What is loaded together does not end together. Jitter takes up to a tenth off every life (a fifth off those below two minutes), anew each
// time and in each tier; none off the copies that memory has of hot keys. While the cache is cold, what is loaded lives for a share of its TTL between a tenth and all of it instead, once a key; the
// share is the key's own and the same in every process. It is cold for one TTL: after New, where there is no Redis; after a namespace began,
// was cleared, or Redis may have lost data (then only for keys of which nothing stale stands); and after a process loaded, within ten seconds,
// more than three times what it loads on average, and at least a thousand keys. It costs at most one load more a key, in that one TTL.
// A negative Jitter turns both off. Limit: a process that starts after a flush which nobody noticed takes the namespace for an old one.
//
// # Contexts
//
// Loads run with the values of the first caller's context, not its end: no *sql.Tx belongs into a context given to Get. A caller whose
// context ends leaves with that context's error; the load goes on to its own time-out and is kept.
package tiercache
