# report_html() in a real browser: it renders, says nothing on the console, asks nobody for anything, shows hostile names as text,
# fits a phone, and can be read in light and dark.

use strict;
use warnings FATAL => 'all';
use utf8;
use Encode;
use FindBin;
use lib "$FindBin::RealBin/lib";
use EvbusTest;
use IO::Socket::INET;
use IPC::Run;
use JSON::PP;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $node = new_node('report', clock => 1, conf => "autovacuum = off\nevbus.max_handler_workers = 4");
sub sql { my ($q, $database) = @_; return $node->safe_psql($database // 'postgres', Encode::encode_utf8($q)); }
sub report { my ($arguments, @more) = @_; return $node->safe_psql('postgres', "SELECT evbus.report_html($arguments)", @more); }

# -------------------------------------------------------------------------- hostile names

my @names = (
	'<script>alert(1)</script>', '"><img src=http://evil.test/x onerror=alert(1)>', "' onload='alert(1)", ']]></title></style></svg><svg onload=alert(2)>',
	'<!-- &amp; &#60;b&#62; --!>', '😀 مرحبا بالعالم 注文', ('W' x 63), '{{7*7}}${7*7}');
my $type = '<u>' . ('w' x 252);
my @quoted = map { my $name = $_; $name =~ s/'/''/g; "'$name'" } @names;

sql(<<'SQL');
CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
CREATE FUNCTION bad(e evbus.event) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '<b>secret error</b>' USING ERRCODE = '22000'; END $$;
CREATE FUNCTION good(e evbus.event[]) RETURNS void LANGUAGE sql AS '';
SQL
my $empty = report('');
sql("SELECT evbus.create_bus($_), evbus.subscribe($_, left($_, 50), handler => 'good(evbus.event[])')") foreach @quoted;
sql(qq(SELECT evbus.subscribe($quoted[0], 'fails', handler => 'bad(evbus.event)'), evbus.subscribe($quoted[1], '<i>nobody</i>'), evbus.subscribe($quoted[2], 'stopped');
	SELECT evbus.pause('stopped', '</p><script>alert(3)</script>')));
foreach my $minute (1 .. 4)
{
	sql(join ';', map { "SELECT count(evbus.publish($_, '$type', '\"<b>secret payload</b>\"', key => '<b>secret key</b>', headers => '{\"secret\": \"header\"}')) FROM generate_series(1, 30)" } @quoted);
	answers($node, 'postgres', q(SELECT sum(lag) FROM evbus.subscription_lag WHERE subscription NOT IN ('<i>nobody</i>', 'stopped')), '0', "all is handled in minute $minute");
	pass_time(60);
}
answers($node, 'postgres', q(SELECT sum(dead_letters) FROM evbus.dead_letter_trend), '120', 'there are dead letters');

my $page = report(q('<title> & "more"'), extra_params => [ '-U', 'watcher' ]);
unlike($page, qr/secret/, 'no payload, key, header or error text is on it');
unlike($page, qr/[^\x00-\x7f]/, 'it is ASCII, whatever the encodings');
like($empty, qr/^<!DOCTYPE html>\n<html lang="en">.*<title>evbus: postgres<\/title>/s, 'whose title is the database, if there is no other');
my ($ret, $out, $err) = $node->psql('postgres', 'SELECT evbus.report_html(payloads => true)', extra_params => [ '-U', 'watcher' ]);
like($err, qr/permission denied for view dead_letter/, 'pg_monitor gets no payloads');
my $full = report('payloads => true');
like($full, qr/&lt;b&gt;secret $_&lt;\/b&gt;/, "who may read them, and asks for them, gets the $_") foreach 'error', 'key', 'payload';
unlike($full, qr/header&quot;|<b>/, 'but no headers, and as text');

# Databases of other encodings.
sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
sql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
foreach ([ 'latin', '&#xE9;' ], [ 'bytes', '&#xFFFD;&#xFFFD;' ])
{
	my ($database, $shown) = @$_;
	sql("CREATE EXTENSION evbus", $database);
	like($node->safe_psql($database, Encode::encode_utf8("SET client_encoding = " . ($database eq 'latin' ? 'UTF8' : 'SQL_ASCII') . "; SELECT evbus.create_bus('é!'); SELECT evbus.report_html()")),
		qr/<bdi>\Q$shown\E!<\/bdi>/, "in a database that is $database");
}

# A byte that means nothing there, which that encoding accepts.
sql("CREATE DATABASE windows ENCODING 'WIN1252' LOCALE 'C' TEMPLATE template0");
sql("CREATE EXTENSION evbus", 'windows');
like($node->safe_psql('windows', "SET client_encoding = SQL_ASCII; SELECT evbus.create_bus('a' || chr(129) || chr(233)); SELECT evbus.report_html()"), qr/<bdi>a&#xFFFD;&#xE9;<\/bdi>/, 'what has no equivalent keeps nothing else from being shown');

# ------------------------------------------------------------------------------ the browser

# A proxy that has the pages of the host page.test, notes all that it is asked for, and knows nobody else.
my %pages = ('report.html' => $page, 'full.html' => $full, 'empty.html' => $empty);
my $script = "console.log('it ran')";
($pages{'control.html'} = $page) =~ s/<\/body>/<img src="http:\/\/evil.test\/image"><script>$script<\/script><\/body>/;
($pages{'open.html'} = $pages{'control.html'}) =~ s/<meta http-equiv="Content-Security-Policy"[^>]*>//;
$pages{'measure.html'} = do { local $/; <DATA> };
my $asked = "$dir/asked";
my $listener = IO::Socket::INET->new(Listen => 50, LocalAddr => '127.0.0.1', Proto => 'tcp') or die $!;
my $port = $listener->sockport;
my $proxy = fork // die $!;
if ($proxy == 0)
{
	$SIG{CHLD} = 'IGNORE';
	while (my $client = $listener->accept)
	{
		next if fork;    # connections of a browser stay open
		my $line = <$client> // '';
		while (my $header = <$client>) { last if $header =~ /^\r?\n$/; }
		open my $file, '>>', $asked;
		syswrite $file, $line =~ s/ HTTP.*//sr . "\n";
		my $body = $line =~ m{^GET http://page\.test/([a-z.]+)[? ]} ? $pages{$1} : undef;
		print $client defined $body
		  ? "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body"
		  : "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
		close $client;
		POSIX::_exit(0);
	}
	POSIX::_exit(0);
}

my $runs = 0;
# What it makes of a page, what it says on the console, and what it asked for beside the page and what concerns itself.
sub browse
{
	my ($url, @options) = @_;
	unlink $asked;
	my $profile = "$dir/browser" . ++$runs;
	local $ENV{HOME} = $dir;
	local $ENV{XDG_CONFIG_HOME} = "$dir/config";
	local $ENV{XDG_CACHE_HOME} = "$dir/cache";
	my $ok = IPC::Run::run([ 'chromium', '--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
			'--disable-component-update', '--disable-sync', '--disable-default-apps', '--disable-extensions', '--disable-breakpad', '--disable-features=OptimizationHints,MediaRouter,DialMediaRouteProvider',
			"--user-data-dir=$profile", "--proxy-server=127.0.0.1:$port", '--proxy-bypass-list=<-loopback>', '--enable-logging=stderr', '--v=0', '--virtual-time-budget=3000', '--dump-dom',
			@options, "http://page.test/$url" ], '<', \undef, '>', \my $dom, '2>', \my $log, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	my $console = join "\n", $log =~ /^.*CONSOLE.*$/mg;
	my @asked = grep { !m{^GET http://page\.test/\Q$url\E$} && !m{^\w+ (https?://)?[a-z0-9-]+\.(google|googleapis|gstatic|gvt1)\.com[:/]} } split /\n/, -e $asked ? slurp_file($asked) : '';
	diag $log if !$ok;
	return (Encode::decode_utf8($dom), $console, join ', ', @asked);
}

sub escaped
{
	my ($text) = @_;
	return $text =~ s/&/&amp;/gr =~ s/</&lt;/gr =~ s/>/&gt;/gr;
}

my ($dom, $console, $requests) = browse('report.html');
like($dom, qr/<dt>Dead letters<\/dt><dd>120 .*<\/html>/s, 'it renders, to the end');
is($console, '', 'nothing is on the console');
is($requests, '', 'it asks nobody for anything');
unlike($dom, qr/<(script|img|iframe|object|embed|link|a|form|input|u|i|b)\b/, 'it has no element that it should not have');
unlike($dom, qr/<[^>]*\son\w+=/, 'nor anything that would run');
like($dom, qr/<th scope="row"><bdi>\Q${\escaped($_)}\E<\/bdi>/, Encode::encode_utf8("$_ is text")) foreach @names, $type;
like($dom, qr/<title>&lt;title&gt; &amp; "more"<\/title>.*<h1><bdi>&lt;title&gt; &amp; "more"<\/bdi><\/h1>/s, 'the title as well');

# The questions above would have noticed.
($dom, $console, $requests) = browse('control.html');
like($console, qr/Content Security Policy/, 'what would run or load is refused by the page itself, and told on the console');
is($requests, '', 'and not asked for');
($dom, $console, $requests) = browse('open.html');
like("$console $requests", qr/it ran.*GET http:\/\/evil\.test\/image/, 'without that it would run, and ask');

# ------------------------------------------------------------------------------ how it looks

my %background;
foreach my $scheme ('light', 'dark')
{
	($dom, $console, $requests) = browse('measure.html', '--blink-settings=preferredColorScheme=' . ($scheme eq 'dark' ? 0 : 1));
	my ($json) = $dom =~ /<pre id="result">(.*?)<\/pre>/s;
	my $is = defined $json ? decode_json(Encode::encode_utf8($json =~ s/&lt;/</gr =~ s/&gt;/>/gr =~ s/&amp;/&/gr)) : {};
	is($console, '', "$scheme: nothing is on the console");
	foreach my $frame ('full.html?360', 'full.html?768', 'full.html?1240', 'empty.html?360')
	{
		my $at = $is->{$frame} // {};
		is($at->{width}, $frame =~ s/.*\?//r, "$frame: it is not wider than the window");
		is_deeply($at->{over}, [], 'nor is anything on it');
		is_deeply($at->{faint}, [], 'all letters are readable against what is behind them');
		cmp_ok($at->{small} // 0, '>=', 11, 'and not too small');
	}
	$background{$scheme} = $is->{'full.html?360'}{luminance} // -1;
	next if $scheme eq 'dark';
	my @charts = @{ $is->{'full.html?360'}{charts} // [] };
	is(join(', ', map { $_->[0] } @charts), 'Throughput, Lag, Died in the last 24 hours', 'each chart has a name');
	is(join(' ', map { $_->[1] } @charts), join(' ', map { $_->[2] } @charts), 'and a table of its points');
	cmp_ok($charts[$_->[0]][1], '>=', $_->[1], "there are some in chart $_->[0]") foreach [ 0, 3 ], [ 1, 4 ], [ 2, 24 ];
	is_deeply($is->{'full.html?360'}{drawn}, [], 'and each line is drawn within its plot');
}
cmp_ok($background{light}, '>', 0.8, 'it is light');
cmp_ok($background{dark}, '<', 0.1, 'or dark');
cmp_ok($background{dark}, '>=', 0, 'as was asked for');

kill 'TERM', $proxy;
waitpid $proxy, 0;
$node->stop;
done_testing();

__DATA__
<!DOCTYPE html>
<meta charset="utf-8">
<body>
<pre id="result"></pre>
<script>
function channel(c) { c /= 255; return c <= 0.03928 ? c / 12.92 : Math.pow((c + 0.055) / 1.055, 2.4); }
function luminance(c) { return 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]); }
function color(text) { var m = text.match(/[\d.]+/g).map(Number); return m.length < 4 ? m.concat(1) : m; }
function measure(frame, width)
{
	var d = frame.contentDocument, w = frame.contentWindow, all = d.body.querySelectorAll('*'), over = [], faint = [], small = 99;
	function behind(e)
	{
		for (; e; e = e.parentElement)
		{
			var c = color(w.getComputedStyle(e).backgroundColor);
			if (c[3] === 1) return c;
		}
		return [0, 0, 0, 1];
	}
	all.forEach(function (e)
	{
		var box = e.getBoundingClientRect(), style = w.getComputedStyle(e);
		if (box.width === 0 || e.closest('details') || e.closest('svg svg')) return;
		if (box.right > width + 0.5 || box.left < -0.5) over.push(e.tagName + ' ' + e.textContent.slice(0, 30) + ' ' + box.left + '..' + box.right);
		if (![].some.call(e.childNodes, function (n) { return n.nodeType === 3 && n.data.trim() !== ''; }) || e.closest('title')) return;
		small = Math.min(small, parseFloat(style.fontSize));
		var a = luminance(color(e.namespaceURI.includes('svg') ? style.fill : style.color)), b = luminance(behind(e));
		var contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (contrast < 4.5) faint.push(e.tagName + ' ' + e.textContent.slice(0, 30) + ' ' + contrast);
	});
	var drawn = [];
	d.querySelectorAll('.plot path, .plot .col').forEach(function (p)
	{
		var plot = p.closest('.plot').getBoundingClientRect(), box = p.getBoundingClientRect();
		if (box.top < plot.top - 2 || box.bottom > plot.bottom + 2 || box.left < plot.left - 2 || box.right > plot.right + 2) drawn.push(p.getAttribute('d') || p.outerHTML);
	});
	return { width: d.documentElement.scrollWidth, over: over, faint: faint, small: small, luminance: luminance(behind(d.body)), drawn: drawn,
		charts: [].map.call(d.querySelectorAll('figure'), function (f) { return f.querySelector('svg[role=img]') && [f.querySelector('svg[role=img]').getAttribute('aria-label').split(',')[0], f.querySelectorAll('tbody tr').length, f.querySelectorAll('.hit title').length]; }) };
}
var result = {}, frames = ['full.html?360', 'full.html?768', 'full.html?1240', 'empty.html?360'], left = frames.length;
frames.forEach(function (url)
{
	var frame = document.createElement('iframe');
	frame.style = 'border:0;height:2000px;width:' + url.split('?')[1] + 'px';
	frame.onload = function ()
	{
		result[url] = measure(frame, frame.contentDocument.documentElement.clientWidth);
		if (--left === 0) document.getElementById('result').textContent = JSON.stringify(result);
	};
	frame.src = url;
	document.body.appendChild(frame);
});
</script>
