# shellcheck shell=bash
# Publishing in batches of 1000.

title "Publish, batches of 1000" "clients"
about "One transaction a batch; COPY, INSERT and evbus get the same JSON as text from the client; publish_batch() sends 1000 ids back, publish_lines() the first one and their number, the others of PostgreSQL nothing or theirs. Redis: 1000 XADD in a pipeline. NATS: 1000 asynchronous publishes, then all acknowledgements."
series copy plain "COPY into the plain table"
series unnest plain "INSERT ... SELECT unnest(arrays)"
series lines evbus "evbus.publish_lines(), no subscription"
series watched evbus "evbus.publish_lines(), one subscription (paused)"
series arrays evbus "evbus.publish_batch(), no subscription"
series pgmq pgmq "pgmq.send_batch()"
series pgq pgq "pgq.insert_event() a thousand times"
series pgq_copy pgq "COPY into PgQ's event table"
series redis_everysec redis_everysec "Redis XADD in a pipeline, fsync every second"
series redis_always redis_always "Redis MULTI of XADD, fsync always"
series nats nats "NATS JetStream asynchronous publish, file"
for x in 1 4; do
	need lines $x '>=' 1.0 copy
	need lines $x '>=' "$([ $x = 1 ] && echo 3 || echo 2.5)" pgmq
	need lines $x '>=' 4 pgq
	need lines $x '>=' 0.8 pgq_copy
done

measure() {
	local x fast slow batch=(--batch 1000 --warm 1)
	empty_all
	for x in 1 4; do
		fast=(--clients $x --events "$(full_or_quick $((150000 + 50000 * x)) 40000)")
		slow=(--clients $x --events "$(full_or_quick $((80000 + 20000 * x)) 20000)")
		sample copy $x plain publish "${batch[@]}" "${fast[@]}"
		sample lines $x evbus publish --name quiet --by lines "${batch[@]}" "${fast[@]}"
		sample unnest $x plain publish --by unnest "${batch[@]}" "${fast[@]}"
		sample watched $x evbus publish --name watched --by lines "${batch[@]}" "${fast[@]}"
		sample arrays $x evbus publish --name quiet "${batch[@]}" "${fast[@]}"
		sample pgmq $x pgmq publish "${batch[@]}" "${slow[@]}"
		sample pgq $x pgq publish "${batch[@]}" "${slow[@]}"
		sample pgq_copy $x pgq publish --by copy "${batch[@]}" "${fast[@]}"
		sample redis_everysec $x redis_everysec publish "${batch[@]}" "${fast[@]}"
		sample redis_always $x redis_always publish --by multi "${batch[@]}" "${fast[@]}"
		sample nats $x nats publish "${batch[@]}" "${slow[@]}"
	done
}
